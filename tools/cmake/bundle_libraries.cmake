# SPDX-License-Identifier: Apache-2.0
# While a package is being made: every shared library that packed_files load, but glibc's, which has
# to fit the kernel and the loader of the machine, into bundle_libraries; and where each is from,
# with its licence, into bundle_licences. package.cmake and wheel.cmake set these. Into a wheel
# (bundle_libraries is empty) auditwheel puts them, but for those that its policies know everywhere.
set(everywhere "")
if(NOT bundle_libraries)
    set(everywhere "^lib(gcc_s|stdc\\+\\+|z)\\.so")
endif()
file(GET_RUNTIME_DEPENDENCIES
    LIBRARIES ${packed_files}
    RESOLVED_DEPENDENCIES_VAR found
    UNRESOLVED_DEPENDENCIES_VAR missing
    PRE_EXCLUDE_REGEXES "^libdosemap" "^linux-vdso" "^ld-linux"
        "^lib(c|m|dl|rt|pthread|resolv|mvec|util)\\.so"
        ${everywhere})
if(missing)
    message(FATAL_ERROR "These libraries are needed and not found: ${missing}")
endif()
list(SORT found COMPARE FILE_BASENAME)

# The package of the system that a file is from, with its version: "zlib1g:amd64 1:1.2.13". A file
# may be known by its name without the /usr that /lib is a link to.
function(package_of file package version)
    string(REGEX REPLACE "^/usr" "" short ${file})
    foreach(name ${file} ${short})
        execute_process(COMMAND dpkg-query -S ${name} OUTPUT_VARIABLE said ERROR_QUIET
                        RESULT_VARIABLE status)
        if(status EQUAL 0)
            string(REGEX REPLACE ": .*" "" owner "${said}")
            execute_process(COMMAND dpkg-query -W -f "\${Version}" ${owner} OUTPUT_VARIABLE number
                            COMMAND_ERROR_IS_FATAL ANY)
            string(REGEX REPLACE ":.*" "" owner "${owner}")
            set(${package} ${owner} PARENT_SCOPE)
            set(${version} ${number} PARENT_SCOPE)
            return()
        endif()
    endforeach()
    message(FATAL_ERROR "${file} belongs to no package, so that its licence is not known; what is "
            "packed has to be built with the libraries of Debian or Ubuntu")
endfunction()

set(table "library\tpackage\tversion\n")
foreach(library ${found})
    get_filename_component(name ${library} NAME)
    file(REAL_PATH ${library} file)
    package_of(${file} package version)
    if(bundle_libraries)
        file(INSTALL DESTINATION ${bundle_libraries} TYPE FILE RENAME ${name} FILES ${file})
    endif()
    file(INSTALL DESTINATION ${bundle_licences} TYPE FILE RENAME ${package}.txt
         FILES /usr/share/doc/${package}/copyright)
    string(APPEND table "${name}\t${package}\t${version}\n")
endforeach()
# The CUDA run-time library is part of the module, as NVIDIA's licence allows.
file(GLOB licence ${cuda_toolkit}/EULA.txt)
if(cuda_toolkit)
    string(APPEND table "(in libdosemap-cuda.so)\tCUDA run-time library\thttps://docs.nvidia.com/cuda/eula\n")
endif()
if(licence)
    file(INSTALL DESTINATION ${bundle_licences} TYPE FILE RENAME cuda.txt FILES ${licence})
endif()
file(WRITE ${bundle_licences}/bundled.tsv "${table}")
