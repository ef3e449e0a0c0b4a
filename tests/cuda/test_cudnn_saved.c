/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuDNN's plans put into words and made from them again, for a device that is not there: the same
 * engine, without asking for cuDNN's preferences; and what becomes of words that are no plan.
 *
 *     test_cudnn_saved DEVICE_JSON
 *
 * Engines that are compiled at run time cannot be made without a driver, and so not saved here.
 */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "predict/cuda/library_convolution.h"

enum { CANDIDATES = 6 };

static char device_json[8192];
static unsigned failures;

static void expect(bool good, const char *what, const char *found)
{
    if (good)
        return;
    failures++;
    fprintf(stderr, "test_cudnn_saved: %s: '%s'\n", what, found);
}

static library_convolution_spec spec_of(element_type type, size_t channels, size_t edge, int kernel)
{
    library_convolution_spec s = {.type = type,
                                  .precompiled = true,
                                  .samples = 8,
                                  .in_channels = channels,
                                  .out_channels = 2 * channels,
                                  .groups = 1};
    for (int a = 0; a < 3; a++) {
        s.in_dim[a] = s.out_dim[a] = edge;
        s.kernel[a] = kernel;
        s.stride[a] = s.dilation[a] = 1;
        s.pad_begin[a] = s.pad_end[a] = kernel / 2;
    }
    return s;
}

/* In a library that has not been asked for anything. */
static void find(const library_convolution_spec *s, const char *engine, const char *saved,
                 const char *what, const char *expected)
{
    convolution_library *l = NULL;
    library_convolution *c = NULL;
    dm_error err = {0};
    if (convolution_library_open_for(device_json, &l, &err) != DM_OK) {
        expect(false, what, err.what);
        return;
    }
    dm_status status = library_convolution_find(l, s, engine, saved, &c, &err);
    const char *found = c ? library_convolution_describe(c) : err.what;
    expect((status == DM_OK) == (c != NULL), what, found);
    if (expected)
        expect(c && strcmp(found, expected) == 0, what, found);
    else
        expect(status == DM_ERROR_UNSUPPORTED, what, found);
    library_convolution_free(c);
    convolution_library_free(l);
}

/* True as long as there are candidates. */
static bool try_candidate(convolution_library *l, const library_convolution_spec *s, unsigned n)
{
    library_convolution *c = NULL;
    char *saved = NULL;
    dm_error err = {0};
    if (library_convolution_create(l, s, n, &c, &err) != DM_OK)
        return false;
    const char *engine = library_convolution_describe(c);
    expect(library_convolution_save(c, &saved, &err) == DM_OK && saved, "no words", engine);
    if (saved) {
        find(s, engine, saved, "restored", engine);
        find(s, engine, NULL, "by its name", engine);
        find(s, engine, "{\"cudnnVersion\":1}", "words of another version", engine);
        find(s, "eng99999_k2=1: none", saved, "another engine's words", NULL);
        saved[strlen(saved) / 2] = '\0';
        find(s, engine, saved, "half of the words", engine);
    }
    dm_string_free(saved);
    library_convolution_free(c);
    return true;
}

int main(int argc, char **argv)
{
    convolution_library *l = NULL;
    dm_error err = {0};
    FILE *f = argc == 2 ? fopen(argv[1], "rb") : NULL;
    if (!f || fread(device_json, 1, sizeof device_json - 1, f) == 0) {
        fprintf(stderr, "usage: test_cudnn_saved DEVICE_JSON\n");
        return 1;
    }
    fclose(f);
    if (convolution_library_open_for(device_json, &l, &err) != DM_OK) {
        fprintf(stderr, "%s\n", err.what);
        return 1;
    }
    const library_convolution_spec specs[] = {spec_of(ELEMENT_BF16, 32, 32, 3),
                                              spec_of(ELEMENT_F16, 64, 16, 3),
                                              spec_of(ELEMENT_F32, 32, 8, 1)};
    unsigned tried = 0;
    for (size_t i = 0; i < sizeof specs / sizeof *specs; i++)
        for (unsigned n = 0; n < CANDIDATES && try_candidate(l, &specs[i], n); n++)
            tried++;
    convolution_library_free(l);
    printf("%u plans, %u failures\n", tried, failures);
    return tried < 3 || failures > 0;
}
