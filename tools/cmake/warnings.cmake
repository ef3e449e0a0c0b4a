# SPDX-License-Identifier: Apache-2.0
add_library(dosemap_flags INTERFACE)
target_compile_definitions(dosemap_flags INTERFACE _GNU_SOURCE)
target_compile_options(dosemap_flags INTERFACE
    -Wall -Wextra -Wshadow -Wconversion -Wvla -Wmissing-prototypes -Wstrict-prototypes
    $<$<BOOL:${DOSEMAP_WERROR}>:-Werror>)
if(DOSEMAP_SANITIZE)
    target_compile_options(dosemap_flags INTERFACE
        -fsanitize=${DOSEMAP_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
    target_link_options(dosemap_flags INTERFACE -fsanitize=${DOSEMAP_SANITIZE})
endif()
# The library has to be measured too: without its coverage the fuzzer is blind.
if(DOSEMAP_FUZZ)
    target_compile_options(dosemap_flags INTERFACE -fsanitize=fuzzer-no-link)
endif()
