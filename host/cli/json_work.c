/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/json_work.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "cli/options.h"
#include "dosemap.h"

static _Thread_local bool working;

_Noreturn void exit_without_memory(void)
{
    fputs("dosemap: error: no memory; free memory, or use a machine with more\n", stderr);
    dm_remove_partial_files();
    _exit(EXIT_FAILED);
}

static void *allocate(size_t size)
{
    void *memory = malloc(size);
    if (!memory && working)
        exit_without_memory();
    return memory;
}

void json_work_install(void)
{
    working = false;
    json_set_alloc_funcs(allocate, free);
}

void json_work_begin(void)
{
    working = true;
}

void json_work_end(void)
{
    working = false;
}
