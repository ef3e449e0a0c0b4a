/* SPDX-License-Identifier: Apache-2.0 */
/* JSON text: our reader against Jansson's, which must accept the same and make the same of it, and
 * what is printed is read again. */
#include <jansson.h>

#include "base/json_text.h"
#include "fuzz_file.h"

/* What Jansson accepts and ours need not: deep texts (brackets in strings count, for simplicity),
 * and zero bytes, which Jansson passes over behind a number. */
static bool may_be_refused(const uint8_t *data, size_t size)
{
    size_t opened = 0;
    for (size_t i = 0; i < size; i++)
        opened += data[i] == '{' || data[i] == '[';
    return opened >= JSON_MAX_DEPTH || memchr(data, 0, size);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    json_t *root = NULL, *again = NULL;
    char *text = NULL;
    dm_error err = {0};
    dm_status status = json_parse((const char *)data, size, "input", &root, &err);
    fuzz_check_result(status, root, &err);
    json_t *reference = json_loadb((const char *)data, size, JSON_REJECT_DUPLICATES, NULL);
    FUZZ_CHECK(!root || reference);
    FUZZ_CHECK(!reference || root || may_be_refused(data, size));
    if (root) {
        FUZZ_CHECK(json_equal(root, reference));
        FUZZ_CHECK(json_print(root, &text, &err) == DM_OK);
        FUZZ_CHECK(json_parse(text, strlen(text), "printed", &again, &err) == DM_OK);
        FUZZ_CHECK(json_equal(root, again));
        dm_string_free(text);
    }
    json_decref(again);
    json_decref(reference);
    json_decref(root);
    return 0;
}
