/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Makes weights files for tests, good ones and, because nothing is checked here, bad ones.
 *
 *     weights_writer w;
 *     weights_begin(&w, "xyz", 16, 16, 16);
 *     weights_input(&w, "x", 1);
 *     weights_output(&w, "y", 2);
 *     weights_random(&w, "c.weight", 7, 0.3f, 5, (size_t[]){2, 1, 3, 3, 3});
 *     weights_node(&w, "Conv", "c", "x c.weight -", "y",
 *                  "{'kernel_shape': [3, 3, 3], 'pads': [1, 1, 1, 1, 1, 1]}");
 *     status = weights_load(&w, &model, &err);
 *     weights_end(&w);
 *
 * JSON text may be written with ' for ". `graph`, `card` and `header` are open to changes.
 */
#ifndef DOSEMAP_TESTS_WEIGHTS_WRITER_H
#define DOSEMAP_TESTS_WEIGHTS_WRITER_H

#include <jansson.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/codec.h"
#include "base/output_file.h"
#include "dosemap.h"

typedef struct weights_writer {
    json_t *header;   /* of the container: tensors */
    json_t *metadata; /* what is set here is not overwritten when the file is made */
    json_t *graph, *card;
    uint8_t *data;
    size_t data_size;
} weights_writer;

/* JSON with ' for "; a mistake in a test's own text is fatal. */
static inline json_t *weights_json(const char *text)
{
    char *copy = strdup(text);
    json_error_t e;
    for (char *c = copy; *c; c++)
        if (*c == '\'')
            *c = '"';
    json_t *value = json_loads(copy, JSON_DECODE_ANY | JSON_ALLOW_NUL, &e);
    if (!value) {
        fprintf(stderr, "test's JSON: %s: %s\n", e.text, copy);
        exit(99);
    }
    free(copy);
    return value;
}

/* patch: x, y, z. */
static inline void weights_begin(weights_writer *w, const char *spatial_axes, int x, int y, int z)
{
    memset(w, 0, sizeof *w);
    w->header = json_object();
    w->metadata = json_object();
    w->card = weights_json("{'name': 'test', 'version': '1', 'trained': false}");
    w->graph = weights_json("{'graph_version': 1, 'name': 'test', 'orientation': 'RAS',"
                            " 'voxel_size_mm': null, 'inputs': [], 'outputs': [], 'nodes': []}");
    json_object_set_new(w->graph, "spatial_axes", json_string(spatial_axes));
    json_object_set_new(w->graph, "patch_size", json_pack("[i,i,i]", x, y, z));
}

static inline void weights_end(weights_writer *w)
{
    json_decref(w->header);
    json_decref(w->metadata);
    json_decref(w->graph);
    json_decref(w->card);
    free(w->data);
    memset(w, 0, sizeof *w);
}

static inline void weights_port(weights_writer *w, const char *list, const char *name, int channels,
                                const char *quantity, const char *unit)
{
    json_array_append_new(json_object_get(w->graph, list),
                          json_pack("{s:s, s:s, s:s, s:i, s:[]}", "name", name, "quantity",
                                    quantity, "unit", unit, "channels", channels, "intensity"));
}

static inline void weights_input(weights_writer *w, const char *name, int channels)
{
    weights_port(w, "inputs", name, channels, "uptake", "g/mL");
}

static inline void weights_output(weights_writer *w, const char *name, int channels)
{
    weights_port(w, "outputs", name, channels, "dose_per_activity", "Gy/GBq");
}

/* inputs: names separated by spaces, "-" for an optional one left out; attributes may be NULL. */
static inline void weights_node(weights_writer *w, const char *op, const char *name,
                                const char *inputs, const char *output, const char *attributes)
{
    json_t *list = json_array();
    char *copy = strdup(inputs), *rest = NULL;
    for (char *word = strtok_r(copy, " ", &rest); word; word = strtok_r(NULL, " ", &rest))
        json_array_append_new(list, json_string(strcmp(word, "-") ? word : ""));
    free(copy);
    json_t *node = json_pack("{s:s, s:s, s:o, s:[s]}", "op", op, "name", name, "inputs", list,
                             "outputs", output);
    if (attributes)
        json_object_set_new(node, "attributes", weights_json(attributes));
    json_array_append_new(json_object_get(w->graph, "nodes"), node);
}

/* The node added last, for changing it. */
static inline json_t *weights_last_node(weights_writer *w)
{
    json_t *nodes = json_object_get(w->graph, "nodes");
    return json_array_get(nodes, json_array_size(nodes) - 1);
}

/* Adds a tensor of `bytes` as they are. */
static inline void weights_raw(weights_writer *w, const char *name, const char *dtype, size_t rank,
                               const size_t *shape, const void *bytes, size_t size)
{
    json_t *sizes = json_array();
    for (size_t i = 0; i < rank; i++)
        json_array_append_new(sizes, json_integer((json_int_t)shape[i]));
    json_object_set_new(w->header, name,
                        json_pack("{s:s, s:o, s:[I,I]}", "dtype", dtype, "shape", sizes,
                                  "data_offsets", (json_int_t)w->data_size,
                                  (json_int_t)(w->data_size + size)));
    w->data = realloc(w->data, w->data_size + size + 1);
    memcpy(w->data + w->data_size, bytes, size);
    w->data_size += size;
}

static inline size_t weights_count(size_t rank, const size_t *shape)
{
    size_t count = 1;
    for (size_t i = 0; i < rank; i++)
        count *= shape[i];
    return count;
}

static inline void weights_values(weights_writer *w, const char *name, size_t rank,
                                  const size_t *shape, const float *values)
{
    size_t count = weights_count(rank, shape);
    weights_raw(w, name, "F32", rank, shape, values, count * sizeof *values);
}

/* Uniform in [-amplitude, amplitude) + mean. */
static inline void weights_random_about(weights_writer *w, const char *name, uint32_t seed,
                                        float mean, float amplitude, size_t rank,
                                        const size_t *shape)
{
    size_t count = weights_count(rank, shape);
    float *values = malloc(count * sizeof *values);
    uint64_t state = seed * UINT64_C(2654435761) + 1;
    for (size_t i = 0; i < count; i++) {
        state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        values[i] = mean + amplitude * ((float)(state >> 40) / 8388608.0f - 1.0f);
    }
    weights_values(w, name, rank, shape, values);
    free(values);
}

static inline void weights_random(weights_writer *w, const char *name, uint32_t seed,
                                  float amplitude, size_t rank, const size_t *shape)
{
    weights_random_about(w, name, seed, 0, amplitude, rank, shape);
}

/* Replaces a metadata entry; text NULL leaves it out. */
static inline void weights_metadata(weights_writer *w, const char *key, const char *text)
{
    json_object_set_new(w->metadata, key, text ? json_string(text) : json_null());
}

static inline void weights_default_metadata(weights_writer *w, json_t *all, const char *key,
                                            const char *text)
{
    json_t *given = json_object_get(w->metadata, key);
    if (!given)
        json_object_set_new(all, key, json_string(text));
    else if (!json_is_null(given))
        json_object_set(all, key, given);
}

/* 8 bytes of length, header, data; free() it. `header` NULL: made from the parts. */
static inline uint8_t *weights_image(weights_writer *w, const char *header, size_t *size)
{
    char *own = NULL;
    if (!header) {
        char hex[17], *graph_text = json_dumps(w->graph, 0), *card_text = json_dumps(w->card, 0);
        json_t *metadata = json_object(), *all = json_object();
        bytes_checksum(w->data_size ? w->data : (const uint8_t *)"", w->data_size, hex);
        weights_default_metadata(w, metadata, "dosemap.format", "1");
        weights_default_metadata(w, metadata, "dosemap.graph", graph_text);
        weights_default_metadata(w, metadata, "dosemap.card", card_text);
        weights_default_metadata(w, metadata, "dosemap.provenance", "{\"made_by\": \"a test\"}");
        weights_default_metadata(w, metadata, "dosemap.xxh64", hex);
        json_object_set_new(all, "__metadata__", metadata);
        json_object_update(all, w->header);
        header = own = json_dumps(all, JSON_COMPACT);
        json_decref(all);
        free(graph_text);
        free(card_text);
    }
    size_t n = strlen(header);
    uint8_t *image = calloc(8 + n + w->data_size, 1);
    for (size_t i = 0; i < 8; i++)
        image[i] = (uint8_t)((uint64_t)n >> (8 * i));
    memcpy(image + 8, header, n);
    if (w->data_size)
        memcpy(image + 8 + n, w->data, w->data_size);
    *size = 8 + n + w->data_size;
    free(own);
    return image;
}

/* Plain or compressed, as the path's end says. */
static inline dm_status weights_save(weights_writer *w, const char *path, dm_error *err)
{
    size_t size = 0;
    uint8_t *image = weights_image(w, NULL, &size);
    output_file *file = NULL;
    dm_status status = output_open(path, &file, err);
    if (status == DM_OK)
        status = codec_write(file, codec_of_name(path), image, 8, image + 8, size - 8, 1, err);
    if (status == DM_OK)
        status = output_commit(file, err);
    else
        output_abandon(file);
    free(image);
    return status;
}

/* Loads bytes through a temporary file. */
static inline dm_status weights_load_bytes(const void *bytes, size_t size, dm_model **model,
                                           dm_error *err)
{
    const char *folder = getenv("TMPDIR");
    char path[512];
    snprintf(path, sizeof path, "%s/dosemap-test-XXXXXX", folder ? folder : "/tmp");
    int fd = mkstemp(path);
    *model = NULL;
    if (fd < 0 || write(fd, bytes, size) != (ssize_t)size) {
        perror(path);
        exit(99);
    }
    close(fd);
    dm_status status = dm_model_load(path, model, err);
    unlink(path);
    return status;
}

static inline dm_status weights_load(weights_writer *w, dm_model **model, dm_error *err)
{
    size_t size = 0;
    uint8_t *image = weights_image(w, NULL, &size);
    dm_status status = weights_load_bytes(image, size, model, err);
    free(image);
    return status;
}

#endif
