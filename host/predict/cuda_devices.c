/* SPDX-License-Identifier: Apache-2.0 */
#include "predict/cuda_devices.h"

#include <string.h>

#include "base/error.h"

/* More than any machine has; larger numbers would overflow. */
#define DIGITS_MAX 3

/* The number that begins at *text, which moves behind it; -1 if there is none. */
static int read_number(const char **text)
{
    int number = 0, digits = 0;
    for (; **text >= '0' && **text <= '9'; (*text)++, digits++)
        number = digits < DIGITS_MAX ? 10 * number + (**text - '0') : -1;
    return digits > 0 && digits <= DIGITS_MAX ? number : -1;
}

static dm_status add(cuda_devices *devices, int number, const char *name, dm_error *err)
{
    for (int i = 0; i < devices->n; i++)
        if (devices->number[i] == number)
            return error_set(err, DM_ERROR_VALUE, NULL, "name each device once",
                             "'%s' names the device cuda:%d twice", name, number);
    if (devices->n == CUDA_DEVICES_MAX)
        return error_set(err, DM_ERROR_VALUE, NULL, "name fewer devices",
                         "'%s' names more than %d devices", name, CUDA_DEVICES_MAX);
    devices->number[devices->n++] = number;
    return DM_OK;
}

dm_status cuda_devices_parse(const char *name, cuda_devices *devices, dm_error *err)
{
    *devices = (cuda_devices){.all = strcmp(name, "cuda:all") == 0};
    if (devices->all)
        return DM_OK;
    if (strcmp(name, "cuda") == 0)
        return add(devices, 0, name, err);
    const char *text = name;
    dm_status status = DM_OK;
    if (strncmp(name, "cuda:", 5) == 0)
        for (text = name + 5; status == DM_OK; text++) {
            int number = read_number(&text);
            if (number < 0)
                break;
            status = add(devices, number, name, err);
            if (*text == '\0')
                return status;
            if (*text != ',')
                break;
        }
    if (status != DM_OK)
        return status;
    return error_set(err, DM_ERROR_VALUE, NULL,
                     "use auto, cpu, cuda, cuda:N, several as cuda:0,1, or cuda:all",
                     "there is no device '%s'", name);
}

void cuda_devices_expand(cuda_devices *devices, int count)
{
    for (int i = 0; devices->all && i < count && i < CUDA_DEVICES_MAX; i++)
        devices->number[devices->n++] = i;
    devices->all = false;
}
