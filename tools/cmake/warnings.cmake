# SPDX-License-Identifier: Apache-2.0
add_library(dosemap_flags INTERFACE)
target_compile_definitions(dosemap_flags INTERFACE _GNU_SOURCE)
set(c_family $<COMPILE_LANGUAGE:C,CXX>)
target_compile_options(dosemap_flags INTERFACE
    "$<${c_family}:-Wall;-Wextra;-Wshadow;-Wconversion;-Wvla>"
    "$<$<COMPILE_LANGUAGE:C>:-Wmissing-prototypes;-Wstrict-prototypes>"
    "$<$<AND:$<BOOL:${DOSEMAP_WERROR}>,${c_family}>:-Werror>")
if(DOSEMAP_SANITIZE)
    target_compile_options(dosemap_flags INTERFACE
        "$<${c_family}:-fsanitize=${DOSEMAP_SANITIZE};-fno-omit-frame-pointer;-fno-sanitize-recover=all>")
    target_link_options(dosemap_flags INTERFACE -fsanitize=${DOSEMAP_SANITIZE})
endif()
# The library has to be measured too: without its coverage the fuzzer is blind.
if(DOSEMAP_FUZZ)
    target_compile_options(dosemap_flags INTERFACE -fsanitize=fuzzer-no-link)
endif()
# Nothing of this machine in a package: what __FILE__ says begins at the source's root.
if(DOSEMAP_RELOCATABLE)
    target_compile_options(dosemap_flags INTERFACE
        "$<${c_family}:-ffile-prefix-map=${PROJECT_SOURCE_DIR}/=>")
endif()
