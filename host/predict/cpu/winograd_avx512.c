/* SPDX-License-Identifier: Apache-2.0 */
/* Sixteen floats a vector; CMake compiles this file for AVX-512F. */
#if defined(__AVX512F__)
#define LANES 16
#define ROWS 8
#define KERNEL winograd_avx512
#define KERNEL_NAME "winograd avx512"
#include "predict/cpu/winograd_kernel_body.h"
#else
#include "predict/cpu/winograd_kernel.h"
const winograd_kernel winograd_avx512 = {0};
#endif
