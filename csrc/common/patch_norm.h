// Normalisation of one group of values (section 3.3, Table 7b): (z - mean) / sqrt(var + eps) with
// the unbiased variance. Two passes, since the sum of squares would cancel; and all values are
// first taken relative to a pivot, the group's first value, so that a group that hardly varies
// loses no digits to its mean and a constant one gives exact zeros.
#pragma once

#include "platform.h"

namespace mme {

MME_FN float relative(float value, float pivot) { return add(value, -pivot); }

// The deviation that a value adds to the second pass.
MME_FN float squared_deviation(float relative, float mean) {
  const float d = add(relative, -mean);
  return mul(d, d);
}

// Standard deviation from the sum of squared deviations of `count` values (two or more).
MME_FN float deviation(float squares, int count, float eps) {
  return root(add(squares / static_cast<float>(count - 1), eps));
}

MME_FN float normalised(float relative, float mean, float std) {
  return add(relative, -mean) / std;
}

}  // namespace mme
