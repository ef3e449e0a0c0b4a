/* SPDX-License-Identifier: Apache-2.0 */
/* A weights file, plain or Zstandard, as far as the plan that `dosemap inspect` prints. Headers of
 * mutated files get the right length and the right checksum back, so that most go past both. */
#include "base/output_file.h"
#include "fuzz_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char path[128], *text = NULL;
    dm_error err = {0};
    dm_model *model = NULL;
    fuzz_write("model", data, size, path);
    dm_status status = dm_model_load(path, &model, &err);
    fuzz_check_result(status, model, &err);
    for (int json = 0; model && json < 2; json++) {
        const dm_describe_options options = {
            .precision = json ? DM_PRECISION_BF16 : DM_PRECISION_FLOAT32, .as_json = json};
        status = dm_model_describe(model, &options, &text, &err);
        FUZZ_CHECK((status == DM_OK) == (text != NULL) && (status == DM_OK || err.what[0]));
        dm_string_free(text);
    }
    dm_model_free(model);
    return 0;
}

/* The header's end: behind the last closing brace that the old length, or else the text, gives. */
static size_t find_header_end(const uint8_t *data, size_t size)
{
    size_t depth = 0;
    bool quoted = false;
    for (size_t i = 8; i < size; i++) {
        if (quoted && data[i] == '\\')
            i++;
        else if (data[i] == '"')
            quoted = !quoted;
        else if (!quoted && data[i] == '{')
            depth++;
        else if (!quoted && data[i] == '}' && --depth == 0)
            return i + 1;
    }
    return 0;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed)
{
    static const char key[] = "\"dosemap.xxh64\":\"";
    size = LLVMFuzzerMutate(data, size, max_size);
    size_t end = size > 9 && data[8] == '{' ? find_header_end(data, size) : 0;
    if (!end || seed % 8 == 0)
        return size;
    for (size_t i = 0; i < 8; i++)
        data[i] = (uint8_t)((uint64_t)(end - 8) >> (8 * i));
    uint8_t *stated = memmem(data + 8, end - 8, key, sizeof key - 1);
    if (stated && (size_t)(data + end - stated) > sizeof key + 16) {
        char hex[17];
        bytes_checksum(data + end, size - end, hex);
        memcpy(stated + sizeof key - 1, hex, 16);
    }
    return size;
}
