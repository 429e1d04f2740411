// The sums that a warp's tensor-core products add up to.
#pragma once

namespace orth {

// Sums of 32 output rows for 8 kOctets rows of x: [octet][product block][product operand].
template <int kOctets>
using Sums = float[kOctets][2][4];

}  // namespace orth
