/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/number_list.h"

#include <string.h>

#include "cli/options.h"

size_t number_list(const char *text, double *values, size_t most)
{
    char item[64];
    for (size_t n = 0; n < most;) {
        size_t length = strcspn(text, ",");
        if (length >= sizeof item)
            return 0;
        memcpy(item, text, length);
        item[length] = '\0';
        if (!parse_number(item, &values[n++]))
            return 0;
        if (text[length] == '\0')
            return n;
        text += length + 1;
    }
    return 0;
}
