/* SPDX-License-Identifier: Apache-2.0 */
/* The container: what is read, and that every damaged or dishonest one is refused for its reason.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <math.h>
#include <zstd.h>

#include "model/safetensors.h"
#include "weights_writer.h"

static char path[] = "/tmp/dosemap-safetensors-XXXXXX";

static int make_path(void **state)
{
    (void)state;
    int fd = mkstemp(path);
    return fd < 0 ? -1 : close(fd);
}

static int remove_path(void **state)
{
    (void)state;
    return unlink(path);
}

static dm_status read_image(const void *bytes, size_t size, safetensors *file, dm_error *err)
{
    FILE *f = fopen(path, "wb");
    memset(err, 0, sizeof *err);
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, size, f), size);
    assert_int_equal(fclose(f), 0);
    return safetensors_read(path, file, err);
}

/* length, header, data */
static uint8_t *image_of(const char *header, const void *data, size_t data_size, size_t *size)
{
    size_t n = strlen(header);
    uint8_t *image = calloc(8 + n + data_size, 1);
    for (size_t i = 0; i < 8; i++)
        image[i] = (uint8_t)((uint64_t)n >> (8 * i));
    memcpy(image + 8, header, n);
    memcpy(image + 8 + n, data, data_size);
    *size = 8 + n + data_size;
    return image;
}

static void expect(const dm_error *err, dm_status status, const char *text)
{
    char line[1600];
    dm_error_text(err, line, sizeof line);
    if (err->status != status || !strstr(line, text))
        fail_msg("got %d '%s'; expected %d '%s'", (int)err->status, line, (int)status, text);
    assert_string_equal(err->where, path);
    assert_true(err->remedy[0]);
}

static void refuse(const char *header, size_t data_size, dm_status status, const char *text)
{
    static const uint8_t zeros[256];
    size_t size;
    safetensors file;
    dm_error err;
    uint8_t *image = image_of(header, zeros, data_size, &size);
    assert_int_equal(read_image(image, size, &file, &err), status);
    expect(&err, status, text);
    assert_null(file.header);
    assert_null(file.data);
    free(image);
}

static void test_reads_what_is_there(void **state)
{
    (void)state;
    const char *header = "{\"__metadata__\":{\"k\":\"v\",\"n\":\"\"},"
                         "\"b\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[4,16]},"
                         "\"a\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]},"
                         "\"c\":{\"dtype\":\"F16\",\"shape\":[1,1,1,2,1],\"data_offsets\":[16,20]}}"
                         "   ";
    const float values[4] = {1.5f, -2.0f, 0.0f, 3e38f};
    uint8_t data[20];
    memcpy(data, values, 16);
    memcpy(data + 16, "\x00\x3c\x00\xc0", 4);
    size_t size;
    uint8_t *image = image_of(header, data, sizeof data, &size);
    size_t bound = ZSTD_compressBound(size);
    uint8_t *packed = malloc(bound);
    size_t packed_size = ZSTD_compress(packed, bound, image, size, 3);
    for (int zstd = 0; zstd < 2; zstd++) {
        safetensors file;
        dm_error err;
        float *read = NULL;
        assert_int_equal(read_image(zstd ? packed : image, zstd ? packed_size : size, &file, &err),
                         DM_OK);
        assert_int_equal(file.n_tensors, 3);
        assert_int_equal(file.data_size, 20);
        assert_string_equal(file.tensors[0].name, "a"); /* by place, not by name or mention */
        assert_string_equal(file.tensors[1].name, "b");
        assert_int_equal(file.tensors[0].rank, 0);
        assert_int_equal(file.tensors[0].count, 1);
        assert_int_equal(file.tensors[2].rank, 5);
        assert_int_equal(file.tensors[2].shape[3], 2);
        assert_string_equal(safetensors_metadata(&file, "k"), "v");
        assert_string_equal(safetensors_metadata(&file, "n"), "");
        assert_null(safetensors_metadata(&file, "absent"));
        assert_int_equal(safetensors_values(&file, &file.tensors[1], path, &read, &err), DM_OK);
        assert_memory_equal(read, values + 1, 12);
        free(read);
        assert_int_equal(safetensors_values(&file, &file.tensors[2], path, &read, &err), DM_OK);
        assert_true(read[0] == 1.0f && read[1] == -2.0f);
        free(read);
        safetensors_clear(&file);
        safetensors_clear(&file); /* twice does no harm */
    }
    free(packed);
    free(image);
}

static void test_no_tensors(void **state)
{
    (void)state;
    size_t size;
    safetensors file;
    dm_error err;
    uint8_t *image = image_of("{}", "", 0, &size);
    assert_int_equal(read_image(image, size, &file, &err), DM_OK);
    assert_int_equal(file.n_tensors, 0);
    assert_null(safetensors_metadata(&file, "k"));
    safetensors_clear(&file);
    free(image);
}

/* One tensor of n 16-bit words; its values, or NULL with err set. */
static float *widen(const char *dtype, const uint16_t *words, size_t n, dm_error *err)
{
    char header[128];
    uint8_t data[256];
    size_t size;
    safetensors file;
    float *values = NULL;
    for (size_t i = 0; i < n; i++) {
        data[2 * i] = (uint8_t)words[i];
        data[2 * i + 1] = (uint8_t)(words[i] >> 8);
    }
    snprintf(header, sizeof header,
             "{\"t\":{\"dtype\":\"%s\",\"shape\":[%zu],\"data_offsets\":[0,%zu]}}", dtype, n,
             2 * n);
    uint8_t *image = image_of(header, data, 2 * n, &size);
    assert_int_equal(read_image(image, size, &file, err), DM_OK);
    err->status = safetensors_values(&file, &file.tensors[0], path, &values, err);
    safetensors_clear(&file);
    free(image);
    return values;
}

static void test_half_types(void **state)
{
    (void)state;
    /* 1, -0, smallest and largest denormal, smallest normal, largest, 1/3 */
    const uint16_t f16[] = {0x3c00, 0x8000, 0x0001, 0x83ff, 0x0400, 0x7bff, 0x3555};
    const float f16_values[] = {1.0f,     -0.0f,    0x1p-24f,       -1023 * 0x1p-24f,
                                0x1p-14f, 65504.0f, 0.333251953125f};
    const uint16_t bf16[] = {0x3f80, 0x8000, 0x0001, 0x7f7f, 0xc2f7};
    const float bf16_values[] = {1.0f, -0.0f, 0x1p-133f, 0x1.fep127f, -123.5f};
    dm_error err = {0};
    float *values = widen("F16", f16, 7, &err);
    assert_memory_equal(values, f16_values, sizeof f16_values);
    free(values);
    values = widen("BF16", bf16, 5, &err);
    assert_memory_equal(values, bf16_values, sizeof bf16_values);
    free(values);
}

/* Every one of the 65536 halves against arithmetic on sign, exponent and mantissa. */
static void test_every_half(void **state)
{
    (void)state;
    safetensors file = {0};
    dm_error err;
    for (unsigned h = 0; h < 65536; h++) {
        uint8_t bytes[2] = {(uint8_t)h, (uint8_t)(h >> 8)};
        stored_tensor tensor = {"t", TENSOR_F16, 0, {0}, 1, 0, 2};
        int exponent = (int)(h >> 10 & 31), mantissa = (int)(h & 1023);
        float *value = NULL;
        file.data = bytes;
        dm_status status = safetensors_values(&file, &tensor, path, &value, &err);
        if (exponent == 31) {
            assert_int_equal(status, DM_ERROR_FORMAT);
            assert_null(value);
            continue;
        }
        double reference = exponent ? ldexp(1024 + mantissa, exponent - 25) : ldexp(mantissa, -24);
        assert_int_equal(status, DM_OK);
        assert_true((double)*value == (h & 0x8000 ? -reference : reference));
        free(value);
    }
}

static void test_not_finite(void **state)
{
    (void)state;
    dm_error err = {0};
    const uint16_t inf16[] = {0, 0x7c00}, nan16[] = {0xfe01}, inf_b[] = {0, 0, 0xff80};
    assert_null(widen("F16", inf16, 2, &err));
    expect(&err, DM_ERROR_FORMAT, "tensor 't': element 1 of 2 is inf");
    assert_null(widen("F16", nan16, 1, &err));
    expect(&err, DM_ERROR_FORMAT, "tensor 't': element 0 of 1 is");
    assert_null(widen("BF16", inf_b, 3, &err));
    expect(&err, DM_ERROR_FORMAT, "tensor 't': element 2 of 3 is -inf");
}

#define T(body) "{\"t\":{" body "}}"
#define TWO(a, b)                                                                                  \
    "{\"t\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":" a                                  \
    "},\"u\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":" b "}}"

static void test_bad_layout(void **state)
{
    (void)state;
    const dm_status bad = DM_ERROR_FORMAT;
    refuse(TWO("[0,8]", "[4,12]"), 12, bad, "tensor 'u' begins at byte 4; with no overlap");
    refuse(TWO("[0,8]", "[0,8]"), 8, bad, "overlap");
    refuse(TWO("[0,8]", "[12,20]"), 20, bad, "tensor 'u' begins at byte 12; with no gap");
    refuse(TWO("[4,12]", "[12,20]"), 20, bad, "tensor 't' begins at byte 4; with no gap");
    refuse(TWO("[0,8]", "[8,16]"), 15, bad, "data section should have 16 bytes but ends after 15");
    refuse(TWO("[0,8]", "[8,16]"), 17, bad, "bytes behind the data section, which has 16");
    refuse(TWO("[8,0]", "[8,16]"), 16, bad, "0 <= begin <= end");
    refuse(TWO("[-8,0]", "[0,8]"), 16, bad, "0 <= begin <= end");
    refuse(TWO("[0,8]", "[8,16,24]"), 16, bad, "tensor 'u': \"data_offsets\"");
    refuse(TWO("[0,8]", "[8.0,16]"), 16, bad, "tensor 'u': \"data_offsets\"");
    refuse(TWO("[0,8]", "{}"), 16, bad, "tensor 'u': \"data_offsets\"");
    refuse(TWO("[0,8]", "[8,15]"), 16, bad, "needs 8 bytes but its offsets [8, 15] hold 7");
    refuse(TWO("[0,8]", "[8,9223372036854775807]"), 16, bad, "ends at byte 9223372036854775807");
    refuse(TWO("[0,8]", "[9223372036854775800,9223372036854775807]"), 16, bad, "ends at byte");
}

#define F32_4 "\"dtype\":\"F32\",\"data_offsets\":[0,4]"

static void test_bad_tensor(void **state)
{
    (void)state;
    const dm_status bad = DM_ERROR_FORMAT;
    refuse(T(F32_4), 4, bad, "is not described by");
    refuse(T(F32_4 ",\"shape\":[1],\"more\":1"), 4, bad, "is not described by");
    refuse(T("\"dtype\":1,\"shape\":[1],\"data_offsets\":[0,4]"), 4, bad, "is not described by");
    refuse("{\"t\":[]}", 4, bad, "tensor 't' is not described by");
    refuse(T("\"dtype\":\"F64\",\"shape\":[1],\"data_offsets\":[0,8]"), 8, DM_ERROR_UNSUPPORTED,
           "tensor 't' has dtype F64; store weights as F32, F16 or BF16");
    refuse(T("\"dtype\":\"f32\",\"shape\":[1],\"data_offsets\":[0,4]"), 4, DM_ERROR_UNSUPPORTED,
           "dtype f32");
    refuse(T(F32_4 ",\"shape\":1"), 4, bad, "0 to 5 sizes");
    refuse(T(F32_4 ",\"shape\":[1,1,1,1,1,1]"), 4, bad, "0 to 5 sizes");
    refuse(T(F32_4 ",\"shape\":[1,0]"), 4, bad, "size 2 of its shape is not a positive integer");
    refuse(T(F32_4 ",\"shape\":[-1]"), 4, bad, "size 1 of its shape");
    refuse(T(F32_4 ",\"shape\":[1.0]"), 4, bad, "size 1 of its shape");
    refuse(T(F32_4 ",\"shape\":[2]"), 4, bad, "needs 8 bytes but its offsets [0, 4] hold 4");
    /* 2^32 * 2^32 is 0 in 64 bits, and 2^62 * 4 bytes too */
    refuse(T(F32_4 ",\"shape\":[4294967296,4294967296]"), 4, bad, "more than 4294967296 elements");
    refuse(T(F32_4 ",\"shape\":[4611686018427387904]"), 4, bad, "more than 4294967296 elements");
    refuse("{\"\":{" F32_4 ",\"shape\":[1]}}", 4, bad, "empty, unprintable or too long name");
    refuse("{\"a\\nb\":{" F32_4 ",\"shape\":[1]}}", 4, bad, "empty, unprintable or too long name");
    refuse("{\"__metadata__\":[]}", 0, bad, "\"__metadata__\" is not an object");
    refuse("{\"__metadata__\":{\"k\":1}}", 0, bad, "the value of 'k' is not a string");
}

/* A short file that claims 4 GiB is refused for what it lacks. */
static void test_large_claim(void **state)
{
    (void)state;
    refuse(T("\"dtype\":\"F32\",\"shape\":[1073741824],\"data_offsets\":[0,4294967296]"), 16,
           DM_ERROR_FORMAT, "the data section should have 4294967296 bytes but ends after 16");
}

static void test_bad_header(void **state)
{
    (void)state;
    safetensors file;
    dm_error err;
    char deep[4096];
    refuse("[]", 0, DM_ERROR_FORMAT, "does not begin with '{'");
    refuse("{} x", 0, DM_ERROR_FORMAT, "malformed JSON");
    refuse("{\"a\":NaN}", 0, DM_ERROR_FORMAT, "malformed JSON");
    refuse("{\"__metadata__\":{\"k\":\"\xff\"}}", 0, DM_ERROR_FORMAT, "malformed JSON");
    refuse("{\"t\":{" F32_4 ",\"shape\":[1]},\"t\":{" F32_4 ",\"shape\":[1]}}", 4, DM_ERROR_FORMAT,
           "duplicate");
    snprintf(deep, sizeof deep, "{\"t\":%.*s", 2000, "");
    memset(deep + 5, '[', 2000);
    deep[2005] = 0;
    refuse(deep, 0, DM_ERROR_FORMAT, "more than 64 levels deep");
    /* lengths of 0, of 2 GiB, of 2^64 - 1, and 1 beyond the file */
    const uint8_t lengths[4][8] = {
        {0}, {0, 0, 0, 0x80}, {255, 255, 255, 255, 255, 255, 255, 255}, {3}};
    const char *texts[] = {"would have 0 bytes", "would have 2147483648 bytes; 2 to 8388608",
                           "would have 18446744073709551615 bytes", "should have 3 bytes but ends"};
    for (size_t i = 0; i < 4; i++) {
        uint8_t image[10];
        memcpy(image, lengths[i], 8);
        memcpy(image + 8, "{}", 2);
        assert_int_equal(read_image(image, 10, &file, &err), DM_ERROR_FORMAT);
        expect(&err, DM_ERROR_FORMAT, texts[i]);
    }
    assert_int_equal(safetensors_read("/nowhere/x.safetensors", &file, &err), DM_ERROR_IO);
    assert_string_equal(err.where, "/nowhere/x.safetensors");
}

/* Cut after every byte, plain and compressed: always refused. */
static void test_truncated(void **state)
{
    (void)state;
    size_t size;
    safetensors file;
    dm_error err;
    uint8_t *image = image_of(TWO("[0,8]", "[8,16]"), "0123456789abcdef", 16, &size);
    uint8_t packed[1024];
    ZSTD_CCtx *context = ZSTD_createCCtx();
    ZSTD_CCtx_setParameter(context, ZSTD_c_checksumFlag, 1);
    size_t packed_size = ZSTD_compress2(context, packed, sizeof packed, image, size);
    assert_int_equal(read_image(image, size, &file, &err), DM_OK);
    safetensors_clear(&file);
    assert_int_equal(read_image(packed, packed_size, &file, &err), DM_OK);
    safetensors_clear(&file);
    for (size_t n = 0; n < size; n++) {
        assert_int_equal(read_image(image, n, &file, &err), DM_ERROR_FORMAT);
        expect(&err, DM_ERROR_FORMAT, "ends after");
    }
    for (size_t n = 0; n < packed_size; n++)
        assert_int_equal(read_image(packed, n, &file, &err), DM_ERROR_FORMAT);
    /* the frame's checksum covers the header, too */
    packed[packed_size - 1] ^= 1;
    assert_int_equal(read_image(packed, packed_size, &file, &err), DM_ERROR_FORMAT);
    ZSTD_freeCCtx(context);
    free(image);
}

/* ---- In parts ------------------------------------------------------------------------------- */

static void write_two(const char *extra, size_t missing)
{
    static const float values[6] = {1, -2, 3.5f, 1e-40f, NAN, 6};
    const stored_tensor tensors[] = {{.name = "first", .rank = 1, .shape = {2}, .count = 2},
                                     {.name = "x\"y", .rank = 2, .shape = {2, 2}, .count = 4}};
    output_file *file = NULL;
    json_t *metadata = json_pack("{s:s}", "k", "v");
    size_t size = sizeof values - missing;
    assert_int_equal(output_open(path, &file, NULL), DM_OK);
    assert_int_equal(safetensors_write_header(file, metadata, tensors, 2, NULL), DM_OK);
    assert_int_equal(output_write(file, values, size, NULL), DM_OK);
    assert_int_equal(output_write(file, extra, strlen(extra), NULL), DM_OK);
    assert_int_equal(output_commit(file, NULL), DM_OK);
    json_decref(metadata);
}

static void test_written_and_read_in_parts(void **state)
{
    (void)state;
    safetensors file;
    dm_error err = {0};
    float values[4];
    write_two("", 0);
    assert_int_equal(safetensors_open(path, &file, &err), DM_OK);
    assert_null(file.data);
    assert_int_equal(file.data_begin % 8, 0);
    assert_string_equal(safetensors_metadata(&file, "k"), "v");
    assert_null(safetensors_find(&file, "second"));
    const stored_tensor *t = safetensors_find(&file, "x\"y");
    assert_non_null(t);
    assert_int_equal(t->rank, 2);
    assert_int_equal(safetensors_part(&file, t, path, 1, 3, values, &err), DM_OK);
    assert_true(values[0] == 1e-40f && isnan(values[1]) && values[2] == 6);
    t = safetensors_find(&file, "first");
    assert_int_equal(safetensors_part(&file, t, path, 1, 1, values, &err), DM_OK);
    assert_true(values[0] == -2);
    assert_int_equal(truncate(path, (off_t)file.data_begin + 4), 0);
    assert_int_equal(safetensors_part(&file, t, path, 1, 1, values, &err), DM_ERROR_IO);
    expect(&err, DM_ERROR_IO, "cannot read tensor 'first': the file has become shorter");
    safetensors_clear(&file);
    safetensors_clear(&file);
}

static void refuse_open(dm_status status, const char *text)
{
    safetensors file;
    dm_error err = {0};
    assert_int_equal(safetensors_open(path, &file, &err), status);
    expect(&err, status, text);
    assert_false(file.is_open);
}

static void test_parts_of_a_whole_file_only(void **state)
{
    (void)state;
    static const uint8_t zstd[] = {0x28, 0xb5, 0x2f, 0xfd};
    safetensors file;
    dm_error err;
    size_t size;
    write_two("", 1);
    refuse_open(DM_ERROR_FORMAT, "the data section should have 24 bytes but has 23");
    write_two("+", 0);
    refuse_open(DM_ERROR_FORMAT, "should have 24 bytes but has 25");
    assert_int_equal(read_image(zstd, sizeof zstd, &file, &err), DM_ERROR_FORMAT);
    refuse_open(DM_ERROR_FORMAT, "");
    const char *half = "{\"t\":{\"dtype\":\"I64\",\"shape\":[1],\"data_offsets\":[0,8]}}";
    uint8_t *image = image_of(half, "12345678", 8, &size);
    assert_int_equal(read_image(image, size, &file, &err), DM_ERROR_UNSUPPORTED);
    refuse_open(DM_ERROR_UNSUPPORTED, "tensor 't' has dtype I64; store it as F32");
    free(image);
}

/* More than weights may have: the claim is believed only if the file is as large. */
static void test_parts_of_a_large_file(void **state)
{
    (void)state;
    safetensors file;
    dm_error err;
    size_t size;
    float value = 1;
    const char *header = "{\"t\":{\"dtype\":\"F32\",\"shape\":[2147483648],"
                         "\"data_offsets\":[0,8589934592]}}";
    uint8_t *image = image_of(header, "", 0, &size);
    assert_int_equal(read_image(image, size, &file, &err), DM_ERROR_FORMAT);
    refuse_open(DM_ERROR_FORMAT, "should have 8589934592 bytes but has 0");
    if (truncate(path, (off_t)(size + ((size_t)8 << 30))) == 0) { /* a hole; takes no space */
        assert_int_equal(safetensors_open(path, &file, &err), DM_OK);
        assert_int_equal(
            safetensors_part(&file, file.tensors, path, ((size_t)1 << 31) - 1, 1, &value, &err),
            DM_OK);
        assert_true(value == 0);
        safetensors_clear(&file);
    }
    free(image);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reads_what_is_there),
        cmocka_unit_test(test_no_tensors),
        cmocka_unit_test(test_half_types),
        cmocka_unit_test(test_every_half),
        cmocka_unit_test(test_not_finite),
        cmocka_unit_test(test_bad_layout),
        cmocka_unit_test(test_bad_tensor),
        cmocka_unit_test(test_large_claim),
        cmocka_unit_test(test_bad_header),
        cmocka_unit_test(test_truncated),
        cmocka_unit_test(test_written_and_read_in_parts),
        cmocka_unit_test(test_parts_of_a_whole_file_only),
        cmocka_unit_test(test_parts_of_a_large_file),
    };
    return cmocka_run_group_tests(tests, make_path, remove_path);
}
