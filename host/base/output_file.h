/* SPDX-License-Identifier: Apache-2.0 */
/* Output files that appear whole or not at all: a hidden `.NAME.PID.partial` in the same folder,
 * fsync, rename. */
#ifndef DOSEMAP_BASE_OUTPUT_FILE_H
#define DOSEMAP_BASE_OUTPUT_FILE_H

#include "dosemap.h"

typedef struct output_file output_file;

dm_status output_open(const char *path, output_file **file, dm_error *err);
dm_status output_write(output_file *file, const void *bytes, size_t size, dm_error *err);
/* Publishes under the final name. Frees `file` whether or not it succeeds. */
dm_status output_commit(output_file *file, dm_error *err);
/* Removes what was written. NULL is accepted. */
void output_abandon(output_file *file);

/* All of the above for bytes in memory. */
dm_status output_write_all(const char *path, const void *bytes, size_t size, dm_error *err);

/* XXH64 of a file, as 16 hexadecimal digits. */
dm_status file_checksum(const char *path, char hex[17], dm_error *err);
void bytes_checksum(const void *bytes, size_t size, char hex[17]);

#endif
