/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/same_file.h"

#include <stddef.h>
#include <sys/stat.h>

bool same_file(const char *a, const char *b)
{
    struct stat first, second;
    return a && b && stat(a, &first) == 0 && stat(b, &second) == 0 &&
           first.st_dev == second.st_dev && first.st_ino == second.st_ino;
}
