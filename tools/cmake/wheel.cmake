# SPDX-License-Identifier: Apache-2.0
# What `pip install` installs: scikit-build-core configures as pyproject.toml says, builds the target
# dosemap_wheel, and installs the components `program` and `python` (tools/make_wheel: `licences`,
# too) into the folder of the Python package, which is the prefix.
if(NOT SKBUILD)
    return()
endif()
add_custom_target(dosemap_wheel DEPENDS dosemap_python ${packed_targets})

# Wheels hold no links: the library is one file, and called what programs ask for.
set_target_properties(dosemap PROPERTIES VERSION ${PROJECT_VERSION_MAJOR})
set_target_properties(dosemap_python PROPERTIES INSTALL_RPATH "$ORIGIN/${CMAKE_INSTALL_LIBDIR}")
target_link_options(dosemap_python PRIVATE LINKER:--disable-new-dtags)
install(TARGETS dosemap_python LIBRARY DESTINATION . COMPONENT python)

# The licences of the libraries that auditwheel will put into the wheel.
install(CODE "
    set(packed_files \"${packed_files};$<TARGET_FILE:dosemap_python>\")
    set(bundle_libraries \"\")
    set(bundle_licences \"\${CMAKE_INSTALL_PREFIX}/${CMAKE_INSTALL_DOCDIR}/bundled\")
    set(cuda_toolkit \"${CUDAToolkit_LIBRARY_ROOT}\")"
    COMPONENT licences EXCLUDE_FROM_ALL)
install(SCRIPT ${CMAKE_CURRENT_LIST_DIR}/bundle_libraries.cmake
        COMPONENT licences EXCLUDE_FROM_ALL)
