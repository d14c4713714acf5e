// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/config.hpp>

// Vectors of the compiler, which GCC and Clang have on every target: of the width that the target
// has, so that a vector is one register. What depends on the width is in a namespace of its own,
// so that files of one program may be compiled for different widths, of which the machine has all;
// and so is what nvcc compiles, which has no vectors in functions that are for devices too.
#if defined(__CUDACC__) && defined(__AVX__)
#define EXPAR_VECTOR_BYTES 32
#define EXPAR_VECTORS vectors_of_32_bytes_beside_devices
#elif defined(__CUDACC__)
#define EXPAR_VECTOR_BYTES 16
#define EXPAR_VECTORS vectors_of_16_bytes_beside_devices
#elif defined(__AVX512F__)
#define EXPAR_VECTOR_BYTES 64
#define EXPAR_VECTORS vectors_of_64_bytes
#elif defined(__AVX__)
#define EXPAR_VECTOR_BYTES 32
#define EXPAR_VECTORS vectors_of_32_bytes
#else
#define EXPAR_VECTOR_BYTES 16
#define EXPAR_VECTORS vectors_of_16_bytes
#endif

// For what is fast only where the compiler sees the whole: so many registers, and loops of a length
// that it knows.
#define EXPAR_ALWAYS_INLINE inline __attribute__((always_inline))

namespace expar::inline v0::detail {
inline namespace EXPAR_VECTORS {

inline constexpr int vector_bytes = EXPAR_VECTOR_BYTES;

}  // namespace EXPAR_VECTORS
}  // namespace expar::inline v0::detail
