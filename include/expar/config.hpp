// SPDX-License-Identifier: Apache-2.0
#pragma once

/// EXPAR_HD marks what runs on the host and in kernels alike. It is empty outside a CUDA compiler.
#if defined(__CUDACC__)
#define EXPAR_HD __host__ __device__
#else
#define EXPAR_HD
#endif
