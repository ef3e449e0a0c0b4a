/* SPDX-License-Identifier: Apache-2.0 */
/* Runs a fuzz target over files and folders without libFuzzer, in any build: each input once. */
#include <errno.h>
#include <sys/stat.h>

#include "fuzz_file.h"

/* Only called by custom mutators, which nobody calls here. */
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size)
{
    (void)data;
    (void)max_size;
    return size;
}

static size_t replay_file(const char *path)
{
    FILE *f = fopen(path, "rb");
    struct stat about;
    if (!f || fstat(fileno(f), &about) != 0) {
        fprintf(stderr, "%s: %s\n", path, strerror(errno));
        exit(1);
    }
    size_t size = (size_t)about.st_size;
    uint8_t *data = malloc(size ? size : 1); /* exact, so that reading beyond it shows */
    if (!data || fread(data, 1, size, f) != size) {
        fprintf(stderr, "%s: cannot be read\n", path);
        exit(1);
    }
    fclose(f);
    /* Named before it runs: where it crashes, this is the last line. */
    fprintf(stderr, "%s\n", path);
    LLVMFuzzerTestOneInput(data, size);
    free(data);
    return 1;
}

static size_t replay_folder(const char *path)
{
    struct dirent **entries = NULL;
    char file[4096];
    size_t count = 0;
    int n = scandir(path, &entries, NULL, alphasort);
    if (n < 0)
        return replay_file(path);
    for (int i = 0; i < n; i++) {
        snprintf(file, sizeof file, "%s/%s", path, entries[i]->d_name);
        if (entries[i]->d_name[0] != '.')
            count += replay_file(file);
        free(entries[i]);
    }
    free(entries);
    return count;
}

int main(int argc, char **argv)
{
    size_t count = 0;
    for (int i = 1; i < argc; i++)
        count += replay_folder(argv[i]);
    printf("%zu inputs\n", count);
    return count == 0; /* an empty corpus tests nothing */
}
