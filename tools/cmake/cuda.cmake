# SPDX-License-Identifier: Apache-2.0
# Whether the CUDA backend is built. Sets DOSEMAP_WITH_CUDA and, with it, enables the language and
# defines dosemap_cuda_toolkit (headers and the run-time library) and dosemap_cudnn (headers).
set(DOSEMAP_CUDA AUTO CACHE STRING "Build the CUDA backend: AUTO (where it can be built), ON, OFF")
set_property(CACHE DOSEMAP_CUDA PROPERTY STRINGS AUTO ON OFF)
set(DOSEMAP_CUDA_NEEDED 12.8)  # the first to know compute capability 10.0
set(DOSEMAP_CUDNN_NEEDED 9.15) # see host/predict/cuda/library_convolution.h

# problem: empty if nvcc works and the headers of cuDNN are there, each new enough.
function(dosemap_look_for_cuda problem)
    find_program(DOSEMAP_NVCC nvcc HINTS ENV CUDA_PATH ENV CUDA_HOME PATHS /usr/local/cuda
                 PATH_SUFFIXES bin)
    mark_as_advanced(DOSEMAP_NVCC)
    if(NOT DOSEMAP_NVCC)
        set(${problem} "nvcc is missing (PATH, CUDA_PATH, /usr/local/cuda)" PARENT_SCOPE)
        return()
    endif()
    execute_process(COMMAND ${DOSEMAP_NVCC} --version OUTPUT_VARIABLE said ERROR_QUIET)
    string(REGEX MATCH "release ([0-9.]+)" ignored "${said}")
    set(found "${CMAKE_MATCH_1}")
    if(found VERSION_LESS DOSEMAP_CUDA_NEEDED)
        set(${problem} "${DOSEMAP_NVCC} is of CUDA '${found}', needed is ${DOSEMAP_CUDA_NEEDED}"
            PARENT_SCOPE)
        return()
    endif()

    get_filename_component(toolkit ${DOSEMAP_NVCC} REALPATH)
    get_filename_component(toolkit ${toolkit} DIRECTORY)
    find_path(CUDNN_INCLUDE_DIR cudnn_version.h HINTS ENV CUDNN_PATH ${toolkit}/..
              PATH_SUFFIXES include)
    mark_as_advanced(CUDNN_INCLUDE_DIR)
    if(NOT CUDNN_INCLUDE_DIR)
        set(${problem} "cuDNN's headers are missing (${toolkit}/../include, CUDNN_PATH)"
            PARENT_SCOPE)
        return()
    endif()
    file(STRINGS ${CUDNN_INCLUDE_DIR}/cudnn_version.h lines REGEX "define CUDNN_(MAJOR|MINOR) ")
    string(REGEX MATCH "MAJOR ([0-9]+).*MINOR ([0-9]+)" ignored "${lines}")
    set(found "${CMAKE_MATCH_1}.${CMAKE_MATCH_2}")
    if(found VERSION_LESS DOSEMAP_CUDNN_NEEDED)
        set(${problem}
            "cuDNN in ${CUDNN_INCLUDE_DIR} is ${found}, needed is ${DOSEMAP_CUDNN_NEEDED}"
            PARENT_SCOPE)
        return()
    endif()

    # A toolkit that does not get on with the C++ compiler, say, must not end a build that could do
    # without.
    set(ENV{CUDACXX} ${DOSEMAP_NVCC})
    if(NOT CMAKE_CUDA_COMPILER)
        unset(CMAKE_CUDA_COMPILER CACHE)
    endif()
    include(CheckLanguage)
    check_language(CUDA)
    if(NOT CMAKE_CUDA_COMPILER)
        set(${problem} "${DOSEMAP_NVCC} compiles no program (CMakeFiles/CMakeError.log)"
            PARENT_SCOPE)
        return()
    endif()
    set(${problem} "" PARENT_SCOPE)
endfunction()

set(DOSEMAP_WITH_CUDA OFF)
if(DOSEMAP_CUDA)
    dosemap_look_for_cuda(cuda_problem)
    if(NOT cuda_problem)
        set(DOSEMAP_WITH_CUDA ON)
    elseif(DOSEMAP_CUDA STREQUAL AUTO)
        message(STATUS "No CUDA backend: ${cuda_problem}")
    else()
        message(FATAL_ERROR "The CUDA backend (DOSEMAP_CUDA=${DOSEMAP_CUDA}): ${cuda_problem}")
    endif()
endif()

if(DOSEMAP_WITH_CUDA)
    # Programs for compute capability 8.x, 9.0, 10.x; newer ones translate the intermediate code.
    if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
        set(CMAKE_CUDA_ARCHITECTURES 80-real 90-real 100-real 100-virtual)
    endif()
    set(CMAKE_CUDA_STANDARD 17)
    set(CMAKE_CUDA_STANDARD_REQUIRED ON)
    set(CMAKE_CUDA_EXTENSIONS OFF)
    set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
    enable_language(CUDA)
    find_package(CUDAToolkit ${DOSEMAP_CUDA_NEEDED} REQUIRED)

    # The run-time library is linked statically: nothing of the toolkit is needed where the program
    # runs. It opens the driver when it is first called, so that a machine without one gets an answer
    # instead of a module that cannot be loaded.
    add_library(dosemap_cuda_toolkit INTERFACE)
    target_link_libraries(dosemap_cuda_toolkit INTERFACE CUDA::cudart_static)

    # cuDNN is opened at run time, also where it was found now.
    find_library(CUDNN_GRAPH_LIBRARY NAMES libcudnn_graph.so.9 HINTS ENV CUDNN_PATH
                 ${CUDNN_INCLUDE_DIR}/.. ${CUDAToolkit_LIBRARY_DIR} PATH_SUFFIXES lib lib64)
    mark_as_advanced(CUDNN_GRAPH_LIBRARY)
    add_library(dosemap_cudnn INTERFACE)
    target_include_directories(dosemap_cudnn SYSTEM INTERFACE ${CUDNN_INCLUDE_DIR})
    if(CUDNN_GRAPH_LIBRARY AND NOT DOSEMAP_RELOCATABLE)
        get_filename_component(cudnn_dir ${CUDNN_GRAPH_LIBRARY} DIRECTORY)
        target_compile_definitions(dosemap_cudnn INTERFACE DOSEMAP_CUDNN_DIR="${cudnn_dir}")
    endif()
    message(STATUS "CUDA backend: CUDA ${CUDAToolkit_VERSION}, cuDNN in ${CUDNN_INCLUDE_DIR}")
endif()
