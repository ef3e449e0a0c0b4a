/* SPDX-License-Identifier: Apache-2.0 */
#include "model/safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/codec.h"
#include "base/error.h"
#include "base/json_text.h"

static const char remedy_damaged[] = "the file is damaged or incomplete; copy or export it again";
static const char remedy_weights[] = "export the network again with dosemap export";
static const char remedy_patches[] = "write it with the safetensors library";

static uint32_t little_endian(const uint8_t *bytes, size_t n)
{
    uint32_t value = 0;
    for (size_t i = 0; i < n; i++)
        value |= (uint32_t)bytes[i] << (8 * i);
    return value;
}

static size_t type_size(tensor_type type)
{
    return type == TENSOR_F32 ? 4 : 2;
}

/* Reads `size` bytes into a buffer that grows with what arrives, so that a short file with a large
 * claim costs no memory. */
static dm_status read_exactly(byte_source *source, const char *path, const char *what, size_t size,
                              uint8_t **bytes, dm_error *err)
{
    dm_status status = DM_OK;
    uint8_t *buffer = NULL;
    size_t capacity = 0, have = 0;
    *bytes = NULL;
    do {
        size_t wanted = capacity ? 2 * capacity : (size_t)1 << 20;
        capacity = wanted < size ? wanted : size;
        uint8_t *grown = realloc(buffer, capacity ? capacity : 1);
        if (!grown) {
            status = error_memory(err, capacity, what);
            goto done;
        }
        buffer = grown;
        size_t got = 0;
        status = source_read(source, buffer + have, capacity - have, &got, err);
        if (status != DM_OK)
            goto done;
        have += got;
        if (have < capacity) {
            status = error_set(err, DM_ERROR_FORMAT, path, remedy_damaged,
                               "the %s should have %zu bytes but ends after %zu", what, size, have);
            goto done;
        }
    } while (have < size);
    *bytes = buffer;
    buffer = NULL;
done:
    free(buffer);
    return status;
}

static dm_status parse_shape(const safetensors *file, const json_t *shape, const char *path,
                             stored_tensor *tensor, dm_error *err)
{
    size_t rank = json_array_size(shape);
    if (!json_is_array(shape) || rank > SAFETENSORS_MAX_RANK)
        return error_set(err, DM_ERROR_FORMAT, path, file->remedy,
                         "tensor '%s': \"shape\" is not a list of 0 to %d sizes", tensor->name,
                         SAFETENSORS_MAX_RANK);
    tensor->rank = rank;
    tensor->count = 1;
    for (size_t i = 0; i < rank; i++) {
        const json_t *size = json_array_get(shape, i);
        json_int_t n = json_integer_value(size);
        if (!json_is_integer(size) || n < 1)
            return error_set(err, DM_ERROR_FORMAT, path, file->remedy,
                             "tensor '%s': size %zu of its shape is not a positive integer",
                             tensor->name, i + 1);
        tensor->shape[i] = (size_t)n;
        if (!size_multiply(tensor->count, (size_t)n, &tensor->count) || tensor->count > file->limit)
            return error_set(err, DM_ERROR_FORMAT, path, file->remedy,
                             "tensor '%s': its shape has more than %zu elements", tensor->name,
                             file->limit);
    }
    return DM_OK;
}

static dm_status parse_offsets(const safetensors *file, const json_t *offsets, const char *path,
                               stored_tensor *tensor, dm_error *err)
{
    const json_t *first = json_array_get(offsets, 0), *last = json_array_get(offsets, 1);
    json_int_t begin = json_integer_value(first), end = json_integer_value(last);
    if (json_array_size(offsets) != 2 || !json_is_integer(first) || !json_is_integer(last) ||
        begin < 0 || end < begin)
        return error_set(err, DM_ERROR_FORMAT, path, file->remedy,
                         "tensor '%s': \"data_offsets\" is not [begin, end] with 0 <= begin <= end",
                         tensor->name);
    if ((uint64_t)end > file->limit)
        return error_set(err, DM_ERROR_FORMAT, path, file->remedy,
                         "tensor '%s' ends at byte %" PRIu64 "; at most %zu are read", tensor->name,
                         (uint64_t)end, file->limit);
    tensor->begin = (size_t)begin;
    tensor->end = (size_t)end;
    size_t bytes = tensor->count * type_size(tensor->type);
    if (tensor->end - tensor->begin != bytes)
        return error_set(
            err, DM_ERROR_FORMAT, path, file->remedy,
            "tensor '%s': its shape needs %zu bytes but its offsets [%zu, %zu] hold %zu",
            tensor->name, bytes, tensor->begin, tensor->end, tensor->end - tensor->begin);
    return DM_OK;
}

static dm_status parse_tensor(const safetensors *file, const char *name, const json_t *info,
                              const char *path, stored_tensor *tensor, dm_error *err)
{
    static const char *const types[] = {"F32", "F16", "BF16"};
    tensor->name = name;
    const char *dtype = json_string_value(json_object_get(info, "dtype"));
    if (!dtype || json_object_size(info) != 3)
        return error_set(err, DM_ERROR_FORMAT, path, file->remedy,
                         "tensor '%s' is not described by \"dtype\", \"shape\", \"data_offsets\"",
                         name);
    size_t t = 0;
    while (t < 3 && strcmp(dtype, types[t]))
        t++;
    if (t == 3)
        return error_set(err, DM_ERROR_UNSUPPORTED, path,
                         file->limit > SAFETENSORS_MAX_DATA ? "store it as F32"
                                                            : "store weights as F32, F16 or BF16",
                         "tensor '%s' has dtype %.32s", name, dtype);
    tensor->type = (tensor_type)t;
    dm_status status = parse_shape(file, json_object_get(info, "shape"), path, tensor, err);
    if (status != DM_OK)
        return status;
    return parse_offsets(file, json_object_get(info, "data_offsets"), path, tensor, err);
}

static int by_begin(const void *a, const void *b)
{
    const stored_tensor *x = a, *y = b;
    return (x->begin > y->begin) - (x->begin < y->begin);
}

/* Without gaps or overlaps nothing hides in the data section and no two tensors share bytes. */
static dm_status check_layout(safetensors *file, const char *path, dm_error *err)
{
    size_t position = 0;
    if (file->n_tensors)
        qsort(file->tensors, file->n_tensors, sizeof *file->tensors, by_begin);
    for (size_t i = 0; i < file->n_tensors; i++) {
        const stored_tensor *tensor = &file->tensors[i];
        if (tensor->begin != position)
            return error_set(err, DM_ERROR_FORMAT, path, file->remedy,
                             "tensor '%s' begins at byte %zu; with no %s it would be %zu",
                             tensor->name, tensor->begin,
                             tensor->begin < position ? "overlap" : "gap", position);
        position = tensor->end;
    }
    file->data_size = position;
    return DM_OK;
}

static dm_status check_metadata(const safetensors *file, const json_t *metadata, const char *path,
                                dm_error *err)
{
    const char *key;
    json_t *value;
    if (metadata && !json_is_object(metadata))
        return error_set(err, DM_ERROR_FORMAT, path, file->remedy,
                         "\"__metadata__\" is not an object");
    json_object_foreach((json_t *)metadata, key, value)
    {
        if (!json_is_string(value))
            return error_set(err, DM_ERROR_FORMAT, path, file->remedy,
                             "\"__metadata__\": the value of '%.64s' is not a string", key);
    }
    return DM_OK;
}

/* Names appear in messages and on terminals. */
static bool name_is_printable(const char *name)
{
    size_t n = 0;
    for (; name[n]; n++)
        if ((unsigned char)name[n] < 0x20 || name[n] == 0x7f)
            return false;
    return n >= 1 && n <= 255;
}

static dm_status parse_header(safetensors *file, const char *path, dm_error *err)
{
    const char *name;
    json_t *info;
    dm_status status =
        check_metadata(file, json_object_get(file->header, "__metadata__"), path, err);
    if (status != DM_OK)
        return status;
    size_t most = json_object_size(file->header);
    file->tensors = array_zero(most ? most : 1, sizeof *file->tensors);
    if (!file->tensors)
        return error_memory(err, most * sizeof *file->tensors, "the list of tensors");
    json_object_foreach(file->header, name, info)
    {
        if (!strcmp(name, "__metadata__"))
            continue;
        if (!name_is_printable(name))
            return error_set(err, DM_ERROR_FORMAT, path, file->remedy,
                             "tensor %zu of the header has an empty, unprintable or too long name",
                             file->n_tensors + 1);
        status = parse_tensor(file, name, info, path, &file->tensors[file->n_tensors], err);
        if (status != DM_OK)
            return status;
        file->n_tensors++;
    }
    return check_layout(file, path, err);
}

static dm_status read_header(byte_source *source, const char *path, safetensors *file,
                             dm_error *err)
{
    uint8_t *length = NULL, *text = NULL;
    dm_status status = read_exactly(source, path, "header length", 8, &length, err);
    if (status != DM_OK)
        goto done;
    uint64_t n = little_endian(length, 4) | (uint64_t)little_endian(length + 4, 4) << 32;
    if (n < 2 || n > SAFETENSORS_MAX_HEADER) {
        status = error_set(err, DM_ERROR_FORMAT, path,
                           "check that this is a .safetensors or .safetensors.zst file",
                           "its header would have %" PRIu64 " bytes; 2 to %zu are possible", n,
                           SAFETENSORS_MAX_HEADER);
        goto done;
    }
    status = read_exactly(source, path, "header", (size_t)n, &text, err);
    if (status != DM_OK)
        goto done;
    if (text[0] != '{') {
        status = error_set(err, DM_ERROR_FORMAT, path,
                           "check that this is a .safetensors or .safetensors.zst file",
                           "its header does not begin with '{' but with byte 0x%02x", text[0]);
        goto done;
    }
    file->data_begin = 8 + (size_t)n;
    status = json_parse((const char *)text, (size_t)n, path, &file->header, err);
done:
    free(length);
    free(text);
    return status;
}

static dm_status read_data(byte_source *source, const char *path, safetensors *file, dm_error *err)
{
    dm_status status =
        read_exactly(source, path, "data section", file->data_size, &file->data, err);
    if (status != DM_OK)
        return status;
    /* Asking for one more byte also makes the codec check the end of its stream. */
    uint8_t beyond;
    size_t got = 0;
    status = source_read(source, &beyond, 1, &got, err);
    if (status == DM_OK && got)
        status =
            error_set(err, DM_ERROR_FORMAT, path, file->remedy,
                      "there are bytes behind the data section, which has %zu", file->data_size);
    return status;
}

/* Opens the file for parts of the data section, which has to fill it to its end. */
static dm_status open_data(byte_source *source, const char *path, safetensors *file, dm_error *err)
{
    struct stat info;
    if (source_codec(source) != CODEC_PLAIN)
        return error_set(err, DM_ERROR_UNSUPPORTED, path, "decompress it first",
                         "the file is compressed");
    file->fd = open(path, O_RDONLY | O_CLOEXEC);
    file->is_open = file->fd >= 0;
    if (!file->is_open || fstat(file->fd, &info))
        return error_set(err, DM_ERROR_IO, path, "check the file and the disk",
                         "cannot open it: %s", strerror(errno));
    size_t size = info.st_size < 0 ? 0 : (size_t)info.st_size, end = file->data_begin;
    if (size == end + file->data_size)
        return DM_OK;
    return error_set(err, DM_ERROR_FORMAT, path, remedy_damaged,
                     "the data section should have %zu bytes but has %zu", file->data_size,
                     size < end ? 0 : size - end);
}

static dm_status read_file(const char *path, safetensors *file, dm_error *err)
{
    byte_source *source = NULL;
    dm_status status = source_open(path, &source, err);
    if (status != DM_OK)
        return status;
    status = read_header(source, path, file, err);
    if (status == DM_OK)
        status = parse_header(file, path, err);
    if (status == DM_OK)
        status = file->limit > SAFETENSORS_MAX_DATA ? open_data(source, path, file, err)
                                                    : read_data(source, path, file, err);
    source_close(source);
    if (status != DM_OK) {
        error_at(err, path);
        safetensors_clear(file);
    }
    return status;
}

dm_status safetensors_read(const char *path, safetensors *file, dm_error *err)
{
    *file = (safetensors){.remedy = remedy_weights, .limit = SAFETENSORS_MAX_DATA};
    return read_file(path, file, err);
}

dm_status safetensors_open(const char *path, safetensors *file, dm_error *err)
{
    *file = (safetensors){.remedy = remedy_patches, .limit = SAFETENSORS_ANY_DATA};
    return read_file(path, file, err);
}

void safetensors_clear(safetensors *file)
{
    json_decref(file->header);
    free(file->tensors);
    free(file->data);
    if (file->is_open)
        close(file->fd);
    memset(file, 0, sizeof *file);
}

const char *safetensors_metadata(const safetensors *file, const char *key)
{
    const json_t *metadata = json_object_get(file->header, "__metadata__");
    return json_string_value(json_object_get(metadata, key));
}

static float float_of_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static float widen_f16(uint32_t half)
{
    uint32_t sign = (half & 0x8000u) << 16, exponent = half >> 10 & 31, mantissa = half & 1023;
    if (exponent == 31)
        return float_of_bits(sign | 0x7f800000u | mantissa << 13);
    if (exponent == 0) /* zero and denormals */
        return (sign ? -0x1p-24f : 0x1p-24f) * (float)mantissa;
    return float_of_bits(sign | (exponent + 112) << 23 | mantissa << 13);
}

dm_status safetensors_values(const safetensors *file, const stored_tensor *tensor, const char *path,
                             float **values, dm_error *err)
{
    const uint8_t *bytes = file->data + tensor->begin;
    float *out = array_alloc(tensor->count, sizeof *out);
    *values = NULL;
    if (!out)
        return error_memory(err, tensor->count * sizeof *out, tensor->name);
    for (size_t i = 0; i < tensor->count; i++) {
        if (tensor->type == TENSOR_F32)
            out[i] = float_of_bits(little_endian(bytes + 4 * i, 4));
        else if (tensor->type == TENSOR_BF16)
            out[i] = float_of_bits(little_endian(bytes + 2 * i, 2) << 16);
        else
            out[i] = widen_f16(little_endian(bytes + 2 * i, 2));
        if (!isfinite(out[i])) {
            dm_status status =
                error_set(err, DM_ERROR_FORMAT, path, "train or export the network again",
                          "tensor '%s': element %zu of %zu is %g", tensor->name, i, tensor->count,
                          (double)out[i]);
            free(out);
            return status;
        }
    }
    *values = out;
    return DM_OK;
}

dm_status safetensors_part(const safetensors *file, const stored_tensor *tensor, const char *path,
                           size_t first, size_t count, float *values, dm_error *err)
{
    size_t at = file->data_begin + tensor->begin + 4 * first, size = 4 * count, have = 0;
    uint8_t *bytes = (uint8_t *)values;
    while (have < size) {
        ssize_t n = pread(file->fd, bytes + have, size - have, (off_t)(at + have));
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return error_set(err, DM_ERROR_IO, path, "check the file and the disk",
                             "cannot read tensor '%s': %s", tensor->name,
                             n < 0 ? strerror(errno) : "the file has become shorter");
        have += (size_t)n;
    }
    for (size_t i = 0; i < count; i++)
        values[i] = float_of_bits(little_endian(bytes + 4 * i, 4));
    return DM_OK;
}

const stored_tensor *safetensors_find(const safetensors *file, const char *name)
{
    for (size_t i = 0; i < file->n_tensors; i++)
        if (!strcmp(file->tensors[i].name, name))
            return &file->tensors[i];
    return NULL;
}

/* ---- Writing -------------------------------------------------------------------------------- */

static json_t *header_json(json_t *metadata, const stored_tensor *tensors, size_t n)
{
    json_t *header = json_object();
    size_t begin = 0;
    json_put(&header, "__metadata__", json_incref(metadata));
    for (size_t t = 0; t < n; t++) {
        json_t *item = json_object(), *shape = json_array();
        size_t end = begin + 4 * tensors[t].count;
        for (size_t i = 0; i < tensors[t].rank; i++)
            json_push(&shape, json_integer((json_int_t)tensors[t].shape[i]));
        json_put(&item, "dtype", json_string("F32"));
        json_put(&item, "shape", shape);
        json_put(&item, "data_offsets", json_pack("[I,I]", (json_int_t)begin, (json_int_t)end));
        json_put(&header, tensors[t].name, item);
        begin = end;
    }
    return header;
}

dm_status safetensors_write_header(output_file *file, json_t *metadata,
                                   const stored_tensor *tensors, size_t n, dm_error *err)
{
    static const char spaces[8] = "       "; /* so that the data are aligned */
    json_t *header = header_json(metadata, tensors, n);
    char *text = NULL;
    if (!header)
        return error_memory(err, 4096, "the header of a safetensors file");
    dm_status status = json_print(header, &text, err);
    json_decref(header);
    if (status != DM_OK)
        return status;
    size_t size = strlen(text), padding = (8 - size % 8) % 8;
    uint8_t length[8];
    for (int i = 0; i < 8; i++)
        length[i] = (uint8_t)((uint64_t)(size + padding) >> 8 * i);
    status = output_write(file, length, sizeof length, err);
    if (status == DM_OK)
        status = output_write(file, text, size, err);
    if (status == DM_OK)
        status = output_write(file, spaces, padding, err);
    free(text);
    return status;
}
