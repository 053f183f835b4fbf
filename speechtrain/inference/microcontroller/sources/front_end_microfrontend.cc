// The audio front end of TensorFlow Lite Micro, in whole numbers.
#include <algorithm>
#include <cstdint>

#include "front_end.h"
#include "front_end_data.h"
#include "tensorflow/lite/experimental/microfrontend/lib/frontend.h"
#include "tensorflow/lite/experimental/microfrontend/lib/frontend_util.h"

namespace {

FrontendState state;
bool ready = false;

bool Start() {
  FrontendConfig config;
  FrontendFillConfigWithDefaults(&config);
  config.window.size_ms = kWindowMs;
  config.window.step_size_ms = kHopMs;
  config.filterbank.num_channels = kBands;
  config.filterbank.lower_band_limit = kLowest;
  config.filterbank.upper_band_limit = kHighest;
  config.noise_reduction.smoothing_bits = 10;
  config.noise_reduction.even_smoothing = 0.025f;
  config.noise_reduction.odd_smoothing = 0.06f;
  config.noise_reduction.min_signal_remaining = 0.05f;
  config.pcan_gain_control.enable_pcan = kPcan ? 1 : 0;
  config.pcan_gain_control.strength = 0.95f;
  config.pcan_gain_control.offset = 80.0f;
  config.pcan_gain_control.gain_bits = 21;
  config.log_scale.enable_log = 1;
  config.log_scale.scale_shift = 6;
  return FrontendPopulateState(&config, &state, kSampleRate) != 0;
}

}  // namespace

int ComputeFeatures(const int16_t* samples, int count, float* features) {
  if (!ready && !(ready = Start())) return 0;
  FrontendReset(&state);
  static const int16_t silence[kHopSamples] = {0};
  int frames = 0;
  int done = 0;
  while (frames < kFrames && (done < count || frames == 0)) {  // behind the end of less than a window there is silence
    const bool ended = done >= count;
    size_t read = 0;
    const FrontendOutput output =
        FrontendProcessSamples(&state, ended ? silence : samples + done, ended ? kHopSamples : count - done, &read);
    done += static_cast<int>(read);
    for (size_t band = 0; band < output.size; ++band) {
      const int32_t number = ((static_cast<int32_t>(output.values[band]) << 8) + 333) / 666 - 128;
      features[frames * kBands + static_cast<int>(band)] = static_cast<float>(std::min(number, INT32_C(127))) / 32.0f;
    }
    frames += output.size > 0 ? 1 : 0;
  }
  return frames;
}
