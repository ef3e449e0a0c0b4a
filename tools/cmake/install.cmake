# SPDX-License-Identifier: Apache-2.0
# The program, the library with its header, find_package(dosemap), dosemap.pc, the shipped weights and
# shell completion. The component `program` is what runs; the Python package takes no more of it.
include(CMakePackageConfigHelpers)

install(TARGETS dosemap EXPORT dosemapTargets
        LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT program
        NAMELINK_COMPONENT Unspecified
        PUBLIC_HEADER DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
set_target_properties(dosemap_cli PROPERTIES
    INSTALL_RPATH "$ORIGIN/../${CMAKE_INSTALL_LIBDIR}")
install(TARGETS dosemap_cli RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR} COMPONENT program)

set(config_dir ${CMAKE_INSTALL_LIBDIR}/cmake/dosemap)
install(EXPORT dosemapTargets NAMESPACE dosemap:: DESTINATION ${config_dir}
        FILE dosemapConfig.cmake)
write_basic_package_version_file(${PROJECT_BINARY_DIR}/dosemapConfigVersion.cmake
                                 COMPATIBILITY SameMajorVersion)
install(FILES ${PROJECT_BINARY_DIR}/dosemapConfigVersion.cmake DESTINATION ${config_dir})

# As seen from the file, so that `cmake --install --prefix` may name another prefix.
file(RELATIVE_PATH prefix_from_pc ${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig ${CMAKE_INSTALL_PREFIX})
string(REGEX REPLACE "/$" "" prefix_from_pc "${prefix_from_pc}")
configure_file(tools/cmake/dosemap.pc.in dosemap.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/dosemap.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)

file(GLOB shipped_weights CONFIGURE_DEPENDS weights/*.safetensors.zst)
install(FILES ${shipped_weights} DESTINATION ${CMAKE_INSTALL_DATADIR}/dosemap COMPONENT program)
install(FILES LICENSE README.md DESTINATION ${CMAKE_INSTALL_DOCDIR})

# Completion is printed by the program itself.
function(dosemap_completion shell name directory)
    set(file ${PROJECT_BINARY_DIR}/completion/${shell}/${name})
    add_custom_command(OUTPUT ${file}
        COMMAND ${CMAKE_COMMAND} -E make_directory ${PROJECT_BINARY_DIR}/completion/${shell}
        COMMAND dosemap_cli completion ${shell} > ${file} VERBATIM)
    add_custom_target(completion_${shell} ALL DEPENDS ${file})
    install(FILES ${file} DESTINATION ${CMAKE_INSTALL_DATADIR}/${directory})
endfunction()
if(NOT CMAKE_CROSSCOMPILING)
    dosemap_completion(bash dosemap bash-completion/completions)
    dosemap_completion(zsh _dosemap zsh/site-functions)
    dosemap_completion(fish dosemap.fish fish/vendor_completions.d)
endif()
