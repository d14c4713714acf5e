// SPDX-License-Identifier: Apache-2.0
#pragma once

// Each says in one sentence what a build lacks; that no file has the name ends the compilation.
#if __cplusplus < 202002L
#error "expar: C++20 is needed; compile with -std=c++20"
#include <expar/cannot_be_compiled_so>
#elif !defined(__cpp_exceptions) && !defined(__CUDA_ARCH__)
#error "expar: exceptions are needed, they carry its errors; compile without -fno-exceptions"
#include <expar/cannot_be_compiled_so>
#elif defined(__SIZEOF_POINTER__) && __SIZEOF_POINTER__ < 8
#error "expar: indices are 64-bit; compile for a 64-bit target"
#include <expar/cannot_be_compiled_so>
#elif defined(__FLT_EVAL_METHOD__) && (__FLT_EVAL_METHOD__ == 1 || __FLT_EVAL_METHOD__ == 2)
#error "expar: float is to be computed as float; compile with -mfpmath=sse"
#include <expar/cannot_be_compiled_so>
#elif defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__
#error "expar: NaN and infinity count; compile with -fno-finite-math-only, behind -ffast-math"
#include <expar/cannot_be_compiled_so>
#endif

/// EXPAR_HD marks what runs on the host and in kernels alike. It is empty outside a CUDA compiler.
#if defined(__CUDACC__)
#define EXPAR_HD __host__ __device__
#else
#define EXPAR_HD
#endif

// Between EXPAR_IEEE_BEGIN and EXPAR_IEEE_END no option of -ffast-math changes an operation, so
// that files with and without it compute the same bits, in one program too. GCC then calls, rather
// than inlines, what is defined there from what is not; it says by macros whether that is needed.
// Clang does not, and marks each operation by itself.
// What is between them means to compare floats for equality and to cast vectors as C does; the
// warnings of it are off there, and the one that GCC has of an int that bounds an array.
#define EXPAR_DETAIL_EXACT                                                           \
  _Pragma("GCC diagnostic push") _Pragma("GCC diagnostic ignored \"-Wfloat-equal\"") \
      _Pragma("GCC diagnostic ignored \"-Wold-style-cast\"")
#if defined(__clang__) && !defined(__CUDACC__)
#define EXPAR_IEEE_BEGIN \
  EXPAR_DETAIL_EXACT     \
  _Pragma("float_control(precise, on, push)") _Pragma("clang fp contract(off)")
#define EXPAR_IEEE_END _Pragma("float_control(pop)") _Pragma("GCC diagnostic pop")
#elif defined(__ASSOCIATIVE_MATH__) || defined(__RECIPROCAL_MATH__) || defined(__NO_SIGNED_ZEROS__)
#if defined(__CUDACC__)  // which warns of what it hands on to GCC
#define EXPAR_DETAIL_QUIET _Pragma("nv_diagnostic push") _Pragma("nv_diag_suppress 1675")
#define EXPAR_DETAIL_LOUD _Pragma("nv_diagnostic pop")
#else
#define EXPAR_DETAIL_QUIET
#define EXPAR_DETAIL_LOUD
#endif
#define EXPAR_IEEE_BEGIN                                                                        \
  EXPAR_DETAIL_EXACT EXPAR_DETAIL_QUIET _Pragma("GCC diagnostic ignored \"-Wsign-conversion\"") \
      _Pragma("GCC push_options") _Pragma("GCC optimize(\"no-associative-math\")")              \
          _Pragma("GCC optimize(\"no-reciprocal-math\")")                                       \
              _Pragma("GCC optimize(\"no-unsafe-math-optimizations\")")                         \
                  _Pragma("GCC optimize(\"signed-zeros\")")                                     \
                      _Pragma("GCC optimize(\"trapping-math\")")                                \
                          _Pragma("GCC optimize(\"fp-contract=off\")") EXPAR_DETAIL_LOUD
#define EXPAR_IEEE_END _Pragma("GCC pop_options") _Pragma("GCC diagnostic pop")
#else
#define EXPAR_IEEE_BEGIN EXPAR_DETAIL_EXACT _Pragma("GCC diagnostic ignored \"-Wsign-conversion\"")
#define EXPAR_IEEE_END _Pragma("GCC diagnostic pop")
#endif
