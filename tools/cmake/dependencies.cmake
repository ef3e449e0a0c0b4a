# SPDX-License-Identifier: Apache-2.0
# NIfTI-clib's and oneDNN's own CMake configs want packages that nothing here needs (OpenCL, say), so
# both are found by hand.
find_package(PkgConfig REQUIRED)
find_package(Threads REQUIRED)
find_package(OpenMP REQUIRED COMPONENTS C)
pkg_check_modules(zstd REQUIRED IMPORTED_TARGET libzstd)
pkg_check_modules(isal REQUIRED IMPORTED_TARGET libisal)
pkg_check_modules(jansson REQUIRED IMPORTED_TARGET jansson>=2.13)
pkg_check_modules(xxhash REQUIRED IMPORTED_TARGET libxxhash)

find_path(NIFTI2_INCLUDE_DIR nifti2_io.h PATH_SUFFIXES nifti REQUIRED)
find_library(NIFTI2_LIBRARY nifti2 REQUIRED)
add_library(dosemap_nifti2 INTERFACE)
target_include_directories(dosemap_nifti2 SYSTEM INTERFACE ${NIFTI2_INCLUDE_DIR})
target_link_libraries(dosemap_nifti2 INTERFACE ${NIFTI2_LIBRARY})

find_path(DNNL_INCLUDE_DIR dnnl.h REQUIRED)
find_library(DNNL_LIBRARY dnnl REQUIRED)
add_library(dosemap_dnnl INTERFACE)
target_include_directories(dosemap_dnnl SYSTEM INTERFACE ${DNNL_INCLUDE_DIR})
target_link_libraries(dosemap_dnnl INTERFACE ${DNNL_LIBRARY})
