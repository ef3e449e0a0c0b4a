/* SPDX-License-Identifier: Apache-2.0 */
/* Eight floats a vector; CMake compiles this file for AVX2 with FMA. */
#if defined(__AVX2__)
#define LANES 8
#define ROWS 6
#define KERNEL winograd_avx2
#define KERNEL_NAME "winograd avx2"
#include "predict/cpu/winograd_kernel_body.h"
#else
#include "predict/cpu/winograd_kernel.h"
const winograd_kernel winograd_avx2 = {0};
#endif
