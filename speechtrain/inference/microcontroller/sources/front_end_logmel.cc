// Logarithms of mel energies in float32, normalised over the recording.
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "front_end.h"
#include "front_end_data.h"

namespace {

constexpr float kFloor = 1e-10f;
constexpr int kBins = kFftSize / 2 + 1;

int num_samples;
int num_frames;
float prepared[kMaxSamples];
float real[kFftSize];
float imaginary[kFftSize];
float power[kBins];
float energies[kFrames];
bool counted[kFrames];

// Complex fast Fourier transform in place, radix 2.
void Transform() {
  for (int i = 1, j = 0; i < kFftSize; ++i) {
    int bit = kFftSize >> 1;
    for (; j & bit; bit >>= 1) j ^= bit;
    j ^= bit;
    if (i < j) {
      std::swap(real[i], real[j]);
      std::swap(imaginary[i], imaginary[j]);
    }
  }
  for (int size = 2; size <= kFftSize; size <<= 1) {
    const int half = size / 2;
    for (int k = 0; k < half; ++k) {
      const float angle = -2.0f * kPi * static_cast<float>(k) / static_cast<float>(size);
      const float c = std::cos(angle);
      const float s = std::sin(angle);
      for (int i = k; i < kFftSize; i += size) {
        const int j = i + half;
        const float re = real[j] * c - imaginary[j] * s;
        const float im = real[j] * s + imaginary[j] * c;
        real[j] = real[i] - re;
        imaginary[j] = imaginary[i] - im;
        real[i] += re;
        imaginary[i] += im;
      }
    }
  }
}

// Samples between -1 and 1, without their mean (samples of exactly zero are silence that was added), with high frequencies raised.
void Prepare(const int16_t* samples) {
  double sum = 0.0;
  int spoken = 0;
  for (int i = 0; i < num_samples; ++i) {
    sum += samples[i] / 32768.0;
    spoken += samples[i] != 0;
  }
  const float offset = kRemoveDc ? static_cast<float>(sum / std::max(1, spoken)) : 0.0f;
  for (int i = 0; i < num_samples; ++i) prepared[i] = samples[i] == 0 ? 0.0f : samples[i] / 32768.0f - offset;
  for (int i = num_samples - 1; i > 0; --i) prepared[i] -= kPreemphasis * prepared[i - 1];
}

// Mel energies of the frame that is centred on sample t * kHop.
void Energies(int t, float* bands) {
  for (int n = 0; n < kFftSize; ++n) {
    const int place = t * kHop - kFftSize / 2 + n;
    const int inside = n - (kFftSize - kWindow) / 2;
    const bool covered = inside >= 0 && inside < kWindow && place >= 0 && place < num_samples;
    real[n] = covered ? prepared[place] * kWindowShape[inside] : 0.0f;
    imaginary[n] = 0.0f;
  }
  Transform();
  for (int k = 0; k < kBins; ++k) power[k] = real[k] * real[k] + imaginary[k] * imaginary[k];
  const float* weight = kFilterWeights;
  for (int band = 0; band < kBands; ++band) {
    float energy = 0.0f;
    for (int k = 0; k < kFilterLengths[band]; ++k) energy += power[kFilterStarts[band] + k] * *weight++;
    bands[band] = energy;
  }
}

// The greatest energy that lasts: a median over kLastingFrames lasts longer than a click.
float LastingEnergy() {
  const int width = std::min(num_frames, kLastingFrames);
  float sorted[kLastingFrames];
  float greatest = 0.0f;
  for (int t = 0; t + width <= num_frames; ++t) {
    std::copy(energies + t, energies + t + width, sorted);
    std::sort(sorted, sorted + width);
    greatest = std::max(greatest, sorted[(width - 1) / 2]);
  }
  return greatest;
}

// Frames of silence get the lowest value of each band in the others.
void LowerSilence(float* features) {
  const float loudest = *std::max_element(energies, energies + num_frames);
  bool silent = false;
  for (int t = 0; t < num_frames; ++t) silent |= !(counted[t] = energies[t] >= loudest * kSilence);
  for (int band = 0; silent && band < kBands; ++band) {
    float lowest = INFINITY;
    for (int t = 0; t < num_frames; ++t) {
      if (counted[t]) lowest = std::min(lowest, features[t * kBands + band]);
    }
    for (int t = 0; t < num_frames; ++t) {
      if (!counted[t]) features[t * kBands + band] = lowest;
    }
  }
}

// Shifts and scales the bands from `first` to `last` to mean 0 and deviation 1 over the counted frames.
void Normalise(float* features, int first, int last) {
  double sum = 0.0;
  double squares = 0.0;
  int count = 0;
  for (int t = 0; t < num_frames; ++t) {
    for (int band = first; counted[t] && band < last; ++band, ++count) sum += features[t * kBands + band];
  }
  const double mean = sum / count;
  for (int t = 0; t < num_frames; ++t) {
    for (int band = first; counted[t] && band < last; ++band) {
      squares += (features[t * kBands + band] - mean) * (features[t * kBands + band] - mean);
    }
  }
  const float deviation = std::max(1e-3f, static_cast<float>(std::sqrt(squares / count)));
  for (int t = 0; t < num_frames; ++t) {
    for (int band = first; band < last; ++band) {
      features[t * kBands + band] = (features[t * kBands + band] - static_cast<float>(mean)) / deviation;
    }
  }
}

}  // namespace

int ComputeFeatures(const int16_t* samples, int count, float* features) {
  num_samples = std::min(count, kMaxSamples);
  num_frames = 1 + num_samples / kHop;
  Prepare(samples);
  float greatest = 0.0f;
  for (int t = 0; t < num_frames; ++t) {
    Energies(t, features + t * kBands);
    energies[t] = 0.0f;
    counted[t] = true;
    for (int band = 0; band < kBands; ++band) {
      energies[t] += features[t * kBands + band];
      greatest = std::max(greatest, features[t * kBands + band]);
    }
  }
  const float floor = std::max(kFloor, kTop > 0.0f ? greatest * kTop : 0.0f);
  for (int i = 0; i < num_frames * kBands; ++i) features[i] = std::log(std::max(floor, features[i]));
  if (kNormalize == Normalize::kNone) return num_frames;
  if (kSilence > 0.0f) LowerSilence(features);
  if (kSpeech > 0.0f) {
    const float loudest = LastingEnergy();
    for (int t = 0; t < num_frames; ++t) counted[t] = energies[t] >= loudest * kSpeech;
  }
  const int together = kNormalize == Normalize::kBand ? 1 : kBands;
  for (int band = 0; band < kBands; band += together) Normalise(features, band, band + together);
  return num_frames;
}
