// From samples to the features of a recording, as the model was trained on them.
#ifndef FRONT_END_H_
#define FRONT_END_H_

#include <cstdint>

#include "settings.h"

// Computes frames of kBands values from `count` samples of 16 bits at kSampleRate, at most kMaxSamples of them; returns how many frames.
int ComputeFeatures(const int16_t* samples, int count, float* features);

#endif  // FRONT_END_H_
