// Classifies a recording: the one in recording.cc, or on a computer the WAV file (16 bits, mono, kSampleRate) that is named.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>

#include "front_end.h"
#include "model_data.h"
#include "operators.h"
#include "recording.h"
#include "settings.h"
#include "tensorflow/lite/micro/micro_interpreter.h"
#include "tensorflow/lite/schema/schema_generated.h"

namespace {

alignas(16) uint8_t arena[kArenaBytes];
float features[kFrames * kBands];
int16_t samples[kMaxSamples];

// Reads the samples of a WAV file, and returns how many; those behind the first kMaxSamples are left out. 0: it cannot be read.
int ReadWav(const char* path) {
  std::FILE* file = std::fopen(path, "rb");
  if (file == nullptr) return 0;
  char id[4];
  uint32_t size = 0;
  bool found = std::fseek(file, 12, SEEK_SET) == 0;
  while (found && std::fread(id, 1, 4, file) == 4 && std::fread(&size, 4, 1, file) == 1) {
    if (std::memcmp(id, "data", 4) == 0) {
      const size_t most = size / 2 < static_cast<uint32_t>(kMaxSamples) ? size / 2 : kMaxSamples;
      const size_t read = std::fread(samples, 2, most, file);
      std::fclose(file);
      return static_cast<int>(read);
    }
    found = std::fseek(file, static_cast<long>(size + (size & 1)), SEEK_CUR) == 0;
  }
  std::fclose(file);
  return 0;
}

// The nearest whole number of the model's input.
int8_t Quantise(float value) {
  const long number = std::lrint(value / kInputScale) + kInputZero;
  return static_cast<int8_t>(number < -128 ? -128 : number > 127 ? 127 : number);
}

}  // namespace

int main(int argc, char** argv) {
  const int count = argc > 1 ? ReadWav(argv[1]) : kRecordingSamples;
  if (count == 0) {
    std::printf("%s cannot be read as a WAV file\n", argv[1]);
    return 2;
  }

  OperatorResolver resolver;
  if (AddOperators(resolver) != kTfLiteOk) return 1;
  const tflite::Model* model = tflite::GetModel(kModelData);
  tflite::MicroInterpreter interpreter(model, resolver, arena, kArenaBytes);
  if (interpreter.AllocateTensors() != kTfLiteOk) {
    std::printf("the arena of %d bytes is too small, or an operator is missing\n", static_cast<int>(kArenaBytes));
    return 1;
  }
  const int frames = ComputeFeatures(argc > 1 ? samples : kRecording, count, features);
  int8_t* input = interpreter.input(kFeaturesInput)->data.int8;
  int8_t* mask = interpreter.input(kMaskInput)->data.int8;
  for (int i = 0; i < kFrames * kBands; ++i) input[i] = i < frames * kBands ? Quantise(features[i]) : kInputZero;
  for (int t = 0; t < kFrames; ++t) mask[t] = t < frames ? kMaskInside : kMaskOutside;
  if (interpreter.Invoke() != kTfLiteOk) return 1;

  const int8_t* output = interpreter.output(0)->data.int8;
  int best = 0;
  for (int i = 1; i < kClasses; ++i) best = output[i] > output[best] ? i : best;
  const float probability = kOutputScale * static_cast<float>(output[best] - kOutputZero);
  std::printf("%s %.2f", kClassNames[best], probability);
  if (argc == 1) std::printf(" (recorded: %s)", kRecordedClass);
  std::printf("\narena: %d of %d bytes used\n", static_cast<int>(interpreter.arena_used_bytes()), static_cast<int>(kArenaBytes));
  return 0;
}
