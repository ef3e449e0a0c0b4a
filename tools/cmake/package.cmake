# SPDX-License-Identifier: Apache-2.0
# The package: `cmake --preset package && cmake --build --preset package && cpack --preset package`
# (package-cuda with the CUDA backend) makes dosemap-VERSION-linux-x86_64[-cuda].tar.gz. It runs
# wherever it is unpacked, without root, on what has a glibc no older than that of the machine which
# made it: all other shared libraries come along in lib/, their licences in
# share/doc/dosemap/bundled. A plain `cmake --install` takes those of the system instead.
set(packed_targets dosemap_cli dosemap)
set(packed_files "$<TARGET_FILE:dosemap_cli>;$<TARGET_FILE:dosemap>")
if(DOSEMAP_WITH_CUDA)
    list(APPEND packed_targets dosemap_cuda)
    list(APPEND packed_files "$<TARGET_FILE:dosemap_cuda>")
endif()

if(DOSEMAP_RELOCATABLE)
    # RPATH, not its successor RUNPATH, which would say nothing of where the bundled libraries find
    # each other, and would come after LD_LIBRARY_PATH, in which clusters have libraries of these names.
    foreach(target ${packed_targets})
        target_link_options(${target} PRIVATE LINKER:--disable-new-dtags)
    endforeach()
    set_target_properties(dosemap PROPERTIES INSTALL_RPATH "$ORIGIN")
    if(DOSEMAP_WITH_CUDA)
        set_target_properties(dosemap_cuda PROPERTIES INSTALL_RPATH "$ORIGIN/..")
    endif()
    install(CODE "
        set(packed_files \"${packed_files}\")
        set(bundle_libraries \"\${CMAKE_INSTALL_PREFIX}/${CMAKE_INSTALL_LIBDIR}\")
        set(bundle_licences \"\${CMAKE_INSTALL_PREFIX}/${CMAKE_INSTALL_DOCDIR}/bundled\")
        set(cuda_toolkit \"${CUDAToolkit_LIBRARY_ROOT}\")"
        COMPONENT bundled EXCLUDE_FROM_ALL)
    install(SCRIPT ${CMAKE_CURRENT_LIST_DIR}/bundle_libraries.cmake
            COMPONENT bundled EXCLUDE_FROM_ALL)
endif()

string(TOLOWER ${CMAKE_SYSTEM_NAME} packed_system)
set(CPACK_PACKAGE_FILE_NAME
    ${PROJECT_NAME}-${PROJECT_VERSION}-${packed_system}-${CMAKE_SYSTEM_PROCESSOR})
if(DOSEMAP_WITH_CUDA)
    string(APPEND CPACK_PACKAGE_FILE_NAME -cuda)
endif()
set(CPACK_ARCHIVE_FILE_NAME ${CPACK_PACKAGE_FILE_NAME})
set(CPACK_PACKAGE_DIRECTORY ${PROJECT_BINARY_DIR})
set(CPACK_PACKAGE_VENDOR ${PROJECT_NAME})
set(CPACK_GENERATOR TGZ)
set(CPACK_STRIP_FILES ON)
set(CPACK_VERBATIM_VARIABLES ON)
# In parts, so that the bundled libraries are one which only a package asks for.
set(CPACK_ARCHIVE_COMPONENT_INSTALL ON)
set(CPACK_COMPONENTS_GROUPING ALL_COMPONENTS_IN_ONE)
set(CPACK_COMPONENT_INCLUDE_TOPLEVEL_DIRECTORY ON)
set(CPACK_COMPONENTS_ALL Unspecified program bundled)
include(CPack)
