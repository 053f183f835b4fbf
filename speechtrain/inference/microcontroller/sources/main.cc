// Classifies a recording: the one in recording.cc, where that is, or on a computer the WAV file (16 bits, mono, kSampleRate) that is named.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>

#include "front_end.h"
#include "model_data.h"
#include "operators.h"
#include "settings.h"
#include "tensorflow/lite/micro/micro_interpreter.h"
#include "tensorflow/lite/schema/schema_generated.h"

#if __has_include("recording.h")
#include "recording.h"
#else  // an archive that was given on without the recording
constexpr int kRecordingSamples = 0;
constexpr const int16_t* kRecording = nullptr;
constexpr const char* kRecordedClass = "";
#endif

namespace {

alignas(16) uint8_t arena[kArenaBytes];
float features[kFrames * kBands];
int16_t samples[kMaxSamples];

// A number of so many bytes, the lowest first, as WAV files have them.
uint32_t Number(const unsigned char* bytes, int count) {
  uint32_t number = 0;
  for (int i = 0; i < count; ++i) number |= static_cast<uint32_t>(bytes[i]) << (8 * i);
  return number;
}

// Reads the samples of an open WAV file, and returns how many; those behind the first kMaxSamples are left out. 0: it is none of 16 bits, mono,
// kSampleRate, or holds no samples.
int ReadSamples(std::FILE* file) {
  unsigned char head[16];
  if (std::fread(head, 1, 12, file) != 12 || std::memcmp(head, "RIFF", 4) != 0 || std::memcmp(head + 8, "WAVE", 4) != 0) return 0;
  bool known = false;
  while (std::fread(head, 1, 8, file) == 8) {
    const uint32_t size = Number(head + 4, 4);
    if (std::memcmp(head, "data", 4) == 0) {
      if (!known) return 0;
      const uint32_t most = size / 2 < static_cast<uint32_t>(kMaxSamples) ? size / 2 : static_cast<uint32_t>(kMaxSamples);
      uint32_t count = 0;
      while (count < most && std::fread(head, 1, 2, file) == 2) samples[count++] = static_cast<int16_t>(Number(head, 2));
      return static_cast<int>(count);
    }
    uint32_t rest = size + (size & 1);
    if (rest < size) return 0;
    if (std::memcmp(head, "fmt ", 4) == 0) {
      if (size < 16 || std::fread(head, 1, 16, file) != 16) return 0;
      const uint32_t format = Number(head, 2);  // 1: whole numbers; 0xFFFE: what stands further behind, with 16 bits the same
      known = (format == 1 || format == 0xFFFE) && Number(head + 2, 2) == 1 && Number(head + 14, 2) == 16 &&
              Number(head + 4, 4) == static_cast<uint32_t>(kSampleRate);
      rest -= 16;
    }
    for (; rest > 0; --rest) {
      if (std::fgetc(file) == EOF) return 0;
    }
  }
  return 0;
}

int ReadWav(const char* path) {
  std::FILE* file = std::fopen(path, "rb");
  if (file == nullptr) return 0;
  const int count = ReadSamples(file);
  std::fclose(file);
  return count;
}

// Whether a tensor is there, of whole numbers of 8 bits, and so many of them.
bool Holds(const TfLiteTensor* tensor, int count) {
  if (tensor == nullptr || tensor->type != kTfLiteInt8) return false;
  int numbers = 1;
  for (int i = 0; i < tensor->dims->size; ++i) numbers *= tensor->dims->data[i];
  return numbers == count;
}

// The nearest whole number of the model's input.
int8_t Quantise(float value) {
  const long number = std::lrint(value / kInputScale) + kInputZero;
  return static_cast<int8_t>(number < -128 ? -128 : number > 127 ? 127 : number);
}

}  // namespace

int main(int argc, char** argv) {
  const bool named = argc > 1;
  const int count = named ? ReadWav(argv[1]) : kRecordingSamples;
  if (count == 0) {
    std::printf(named ? "%s is no WAV file of 16 bits, mono, %d Hz, or holds no samples\n" : "usage: %s FILE.wav (16 bits, mono, %d Hz)\n",
                argv[named ? 1 : 0], static_cast<int>(kSampleRate));
    return 2;
  }

  const tflite::Model* model = tflite::GetModel(kModelData);
  if (model->version() != TFLITE_SCHEMA_VERSION) {
    std::printf("the model is of version %d, the library reads %d\n", static_cast<int>(model->version()), TFLITE_SCHEMA_VERSION);
    return 1;
  }
  OperatorResolver resolver;
  if (AddOperators(resolver) != kTfLiteOk) return 1;
  tflite::MicroInterpreter interpreter(model, resolver, arena, kArenaBytes);
  if (interpreter.AllocateTensors() != kTfLiteOk) {
    std::printf("the arena of %d bytes is too small, or an operator is missing\n", static_cast<int>(kArenaBytes));
    return 1;
  }
  if (interpreter.inputs_size() != 2 || interpreter.outputs_size() != 1 || !Holds(interpreter.input(kFeaturesInput), kFrames * kBands) ||
      !Holds(interpreter.input(kMaskInput), kFrames) || !Holds(interpreter.output(0), kClasses)) {
    std::printf("the model has other inputs or outputs than settings.h says\n");
    return 1;
  }
  const int frames = ComputeFeatures(named ? samples : kRecording, count, features);
  if (frames < 1 || frames > kFrames) {
    std::printf("the front end gives %d frames, 1 to %d are allowed\n", frames, static_cast<int>(kFrames));
    return 1;
  }
  int8_t* input = interpreter.input(kFeaturesInput)->data.int8;
  int8_t* mask = interpreter.input(kMaskInput)->data.int8;
  for (int i = 0; i < kFrames * kBands; ++i) input[i] = i < frames * kBands ? Quantise(features[i]) : kInputZero;
  for (int t = 0; t < kFrames; ++t) mask[t] = t < frames ? kMaskInside : kMaskOutside;
  if (interpreter.Invoke() != kTfLiteOk) {
    std::printf("the model cannot be run\n");
    return 1;
  }

  const int8_t* output = interpreter.output(0)->data.int8;
  int best = 0;
  for (int i = 1; i < kClasses; ++i) best = output[i] > output[best] ? i : best;
  const float probability = kOutputScale * static_cast<float>(output[best] - kOutputZero);
  std::printf("%s %.2f", kClassNames[best], static_cast<double>(probability));
  if (!named) std::printf(" (recorded: %s)", kRecordedClass);
  std::printf("\narena: %d of %d bytes used\n", static_cast<int>(interpreter.arena_used_bytes()), static_cast<int>(kArenaBytes));
  return 0;
}
