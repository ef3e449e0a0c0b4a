/* SPDX-License-Identifier: Apache-2.0 */
/* Output files appear whole or not at all; nothing stays behind. */
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
/* cmocka needs those before it */
#include <cmocka.h>

#include "base/output_file.h"

static char folder[64], path[128];

static int make_folder(void **state)
{
    (void)state;
    strcpy(folder, "/tmp/dosemap-output-XXXXXX");
    if (!mkdtemp(folder))
        return -1;
    snprintf(path, sizeof path, "%s/map.nii.gz", folder);
    return 0;
}

static int remove_folder(void **state)
{
    (void)state;
    char command[128];
    snprintf(command, sizeof command, "rm -r '%s'", folder);
    return system(command);
}

/* Entries of the folder; `partial` receives the name of the last hidden one. */
static size_t entries(char *partial, size_t size)
{
    size_t n = 0;
    DIR *dir = opendir(folder);
    assert_non_null(dir);
    for (struct dirent *e; (e = readdir(dir));)
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0) {
            n++;
            if (partial && e->d_name[0] == '.')
                snprintf(partial, size, "%s", e->d_name);
        }
    closedir(dir);
    return n;
}

static void holds(const char *file, const char *expected)
{
    char text[256] = "";
    FILE *f = fopen(file, "rb");
    assert_non_null(f);
    size_t n = fread(text, 1, sizeof text - 1, f);
    fclose(f);
    assert_int_equal(n, strlen(expected));
    assert_string_equal(text, expected);
}

static void test_appears_at_commit(void **state)
{
    (void)state;
    char partial[256] = "", expected[256];
    struct stat info;
    output_file *file = NULL;
    mode_t mask = umask(027);
    assert_int_equal(output_open(path, &file, NULL), DM_OK);
    umask(mask);
    assert_int_equal(output_write(file, "abc", 3, NULL), DM_OK);
    assert_int_equal(output_write(file, "", 0, NULL), DM_OK);
    assert_int_equal(output_write(file, "defg", 4, NULL), DM_OK);
    assert_int_equal(access(path, F_OK), -1);
    assert_int_equal(entries(partial, sizeof partial), 1);
    snprintf(expected, sizeof expected, ".map.nii.gz.%ld.partial", (long)getpid());
    assert_string_equal(partial, expected);
    assert_int_equal(output_commit(file, NULL), DM_OK);
    holds(path, "abcdefg");
    assert_int_equal(entries(NULL, 0), 1);
    assert_int_equal(stat(path, &info), 0);
    assert_int_equal(info.st_mode & 0777, 0640);
    unlink(path);
}

static void test_abandon_keeps_the_old_file(void **state)
{
    (void)state;
    output_file *file = NULL;
    assert_int_equal(output_write_all(path, "old", 3, NULL), DM_OK);
    assert_int_equal(output_open(path, &file, NULL), DM_OK);
    assert_int_equal(output_write(file, "new one", 7, NULL), DM_OK);
    output_abandon(file);
    output_abandon(NULL);
    holds(path, "old");
    assert_int_equal(entries(NULL, 0), 1);
    assert_int_equal(output_write_all(path, "new", 3, NULL), DM_OK);
    holds(path, "new");
    unlink(path);
}

static void test_one_name_twice_at_once(void **state)
{
    (void)state;
    output_file *a = NULL, *b = NULL;
    assert_int_equal(output_open(path, &a, NULL), DM_OK);
    assert_int_equal(output_open(path, &b, NULL), DM_OK);
    assert_int_equal(output_write(a, "from a", 6, NULL), DM_OK);
    assert_int_equal(output_write(b, "from b", 6, NULL), DM_OK);
    assert_int_equal(entries(NULL, 0), 2);
    assert_int_equal(output_commit(a, NULL), DM_OK);
    holds(path, "from a");
    assert_int_equal(output_commit(b, NULL), DM_OK);
    holds(path, "from b");
    assert_int_equal(entries(NULL, 0), 1);
    unlink(path);
}

static void *write_many(void *failures)
{
    for (int i = 0; i < 100; i++)
        if (output_write_all(path, "0123456789", 10, NULL) != DM_OK)
            ++*(int *)failures;
    return NULL;
}

static void test_threads_may_write_one_name(void **state)
{
    (void)state;
    pthread_t ids[4];
    int failures[4] = {0};
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&ids[i], NULL, write_many, &failures[i]), 0);
    for (int i = 0; i < 4; i++) {
        pthread_join(ids[i], NULL);
        assert_int_equal(failures[i], 0);
    }
    holds(path, "0123456789");
    assert_int_equal(entries(NULL, 0), 1);
    unlink(path);
}

static void test_a_relative_name(void **state)
{
    (void)state;
    char before[4096];
    assert_non_null(getcwd(before, sizeof before));
    assert_int_equal(chdir(folder), 0);
    assert_int_equal(output_write_all("map.nii.gz", "x", 1, NULL), DM_OK);
    assert_int_equal(chdir(before), 0);
    holds(path, "x");
    unlink(path);
}

static void cannot_open(const char *name, const char *because, const char *remedy)
{
    dm_error err = {0};
    output_file *file = (output_file *)&err;
    assert_int_equal(output_open(name, &file, &err), DM_ERROR_IO);
    assert_null(file);
    assert_string_equal(err.where, name);
    if (!strstr(err.what, because) || !strstr(err.remedy, remedy))
        fail_msg("'%s; %s' does not say '%s; %s'", err.what, err.remedy, because, remedy);
    assert_int_equal(output_open(name, &file, NULL), DM_ERROR_IO);
}

static void test_where_nothing_can_be_written(void **state)
{
    (void)state;
    char name[1024];
    snprintf(name, sizeof name, "%s/missing/map.nii", folder);
    cannot_open(name, "No such file", "folder");
    cannot_open(folder, "Is a directory", "path of a file");
    snprintf(name, sizeof name, "%s/", folder);
    cannot_open(name, "Is a directory", "path of a file");
    assert_int_equal(output_write_all(path, "x", 1, NULL), DM_OK);
    snprintf(name, sizeof name, "%s/map.nii", path);
    cannot_open(name, "Not a directory", "path");
    unlink(path);
    cannot_open("/proc/dosemap.nii", "No such file", "folder");
    assert_int_equal(entries(NULL, 0), 0);
}

static void test_devices_and_pipes_stay(void **state)
{
    (void)state;
    struct stat info;
    char target[160];
    snprintf(target, sizeof target, "%s.pipe", path);
    assert_int_equal(mkfifo(target, 0600), 0);
    cannot_open(target, "a device or a pipe", "path of a file");
    assert_int_equal(symlink(target, path), 0);
    cannot_open(path, "a device or a pipe", "path of a file");
    unlink(path);
    assert_int_equal(symlink("/dev/null", path), 0);
    cannot_open(path, "a device or a pipe", "path of a file");
    assert_int_equal(lstat(target, &info), 0);
    assert_true(S_ISFIFO(info.st_mode));
    unlink(target);
    unlink(path);
    /* A link to a file is replaced; what it points to, perhaps shared or archived, is not. */
    assert_int_equal(output_write_all(target, "old", 3, NULL), DM_OK);
    assert_int_equal(symlink(target, path), 0);
    assert_int_equal(output_write_all(path, "new", 3, NULL), DM_OK);
    holds(path, "new");
    holds(target, "old");
    unlink(target);
    unlink(path);
    assert_int_equal(entries(NULL, 0), 0);
}

static void test_names_as_long_as_the_file_system_takes(void **state)
{
    (void)state;
    char name[512];
    int n = snprintf(name, sizeof name, "%s/", folder);
    memset(name + n, 'n', 256);
    name[n + 255] = '\0';
    assert_int_equal(output_write_all(name, "x", 1, NULL), DM_OK);
    holds(name, "x");
    unlink(name);
    name[n + 255] = 'n';
    name[n + 256] = '\0';
    dm_error err = {0};
    assert_int_equal(output_write_all(name, "x", 1, &err), DM_ERROR_IO);
    assert_non_null(strstr(err.remedy, "shorter"));
    assert_int_equal(entries(NULL, 0), 0);
}

/* In a child: limits and signals end with it. Its exit status is the number of the failed step. */
static int in_child(int (*step)(void))
{
    int status = -1;
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0)
        _exit(step());
    assert_int_equal(waitpid(child, &status, 0), child);
    return status;
}

/* As root everything may be written: the child becomes someone else. */
static int write_into_a_read_only_folder(void)
{
    dm_error err = {0};
    if (geteuid() == 0 && seteuid(65534) != 0)
        return 1;
    if (output_write_all(path, "x", 1, &err) != DM_ERROR_IO)
        return 2;
    if (strcmp(err.where, path) != 0 || !strstr(err.what, "Permission denied"))
        return 3;
    return strstr(err.remedy, "permissions") ? 0 : 4;
}

static void test_read_only_folder(void **state)
{
    (void)state;
    assert_int_equal(chmod(folder, 0555), 0);
    int status = in_child(write_into_a_read_only_folder);
    assert_int_equal(chmod(folder, 0700), 0);
    assert_int_equal(status, 0);
    assert_int_equal(entries(NULL, 0), 0);
}

static int write_past_the_limit(void)
{
    static char bytes[100000];
    const struct rlimit limit = {50000, 50000};
    dm_error err = {0};
    signal(SIGXFSZ, SIG_IGN);
    if (setrlimit(RLIMIT_FSIZE, &limit) != 0)
        return 1;
    if (output_write_all(path, bytes, sizeof bytes, &err) != DM_ERROR_IO)
        return 2;
    if (strcmp(err.where, path) != 0 || !strstr(err.what, "File too large"))
        return 3;
    return strstr(err.remedy, "limit") ? 0 : 4;
}

static void test_file_size_limit(void **state)
{
    (void)state;
    assert_int_equal(in_child(write_past_the_limit), 0);
    assert_int_equal(entries(NULL, 0), 0);
}

static void on_signal(int number)
{
    dm_remove_partial_files();
    _exit(128 + number);
}

static int ended_by_a_signal(void)
{
    output_file *file[3];
    char second[160], third[160];
    snprintf(second, sizeof second, "%s.2", path);
    snprintf(third, sizeof third, "%s.3", path);
    signal(SIGTERM, on_signal);
    if (output_open(path, &file[0], NULL) != DM_OK ||
        output_open(second, &file[1], NULL) != DM_OK || output_open(third, &file[2], NULL) != DM_OK)
        return 1;
    if (output_write(file[0], "x", 1, NULL) != DM_OK || output_commit(file[1], NULL) != DM_OK)
        return 2;
    raise(SIGTERM);
    return 3;
}

static void test_signal_removes_what_is_unfinished(void **state)
{
    (void)state;
    char second[160];
    snprintf(second, sizeof second, "%s.2", path);
    int status = in_child(ended_by_a_signal);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 128 + SIGTERM);
    assert_int_equal(entries(NULL, 0), 1); /* what was committed stays */
    assert_int_equal(unlink(second), 0);
}

static int goes_on_after_removal(void)
{
    output_file *a = NULL, *b = NULL;
    dm_error err = {0};
    if (output_open(path, &a, NULL) != DM_OK || output_open(path, &b, NULL) != DM_OK)
        return 1;
    dm_remove_partial_files();
    if (output_write(a, "x", 1, NULL) != DM_OK)
        return 2;
    output_abandon(b);
    return output_commit(a, &err) == DM_ERROR_IO && strcmp(err.where, path) == 0 ? 0 : 3;
}

/* Another thread may still be at work while the handler runs. */
static void test_writers_survive_the_removal(void **state)
{
    (void)state;
    assert_int_equal(in_child(goes_on_after_removal), 0);
    assert_int_equal(entries(NULL, 0), 0);
}

static void test_more_files_than_the_registry_holds(void **state)
{
    (void)state;
    enum { FILES = 200 };
    output_file *files[FILES];
    for (int i = 0; i < FILES; i++)
        assert_int_equal(output_open(path, &files[i], NULL), DM_OK);
    assert_int_equal(entries(NULL, 0), FILES);
    for (int i = 0; i < FILES; i++)
        output_abandon(files[i]);
    assert_int_equal(entries(NULL, 0), 0);
}

static void test_checksums(void **state)
{
    (void)state;
    char hex[17], of_file[17];
    /* XXH64 with seed 0 of nothing and of "abc", as its specification lists them. */
    bytes_checksum("", 0, hex);
    assert_string_equal(hex, "ef46db3751d8e999");
    bytes_checksum("abc", 3, hex);
    assert_string_equal(hex, "44bc2cf5ad770999");
    static const size_t sizes[] = {0, 1, 31, 1048576, 2500009};
    uint8_t *bytes = malloc(2500009);
    assert_non_null(bytes);
    for (size_t i = 0; i < 2500009; i++)
        bytes[i] = (uint8_t)(i * i >> 7);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        assert_int_equal(output_write_all(path, bytes, sizes[i], NULL), DM_OK);
        bytes_checksum(bytes, sizes[i], hex);
        assert_int_equal(file_checksum(path, of_file, NULL), DM_OK);
        assert_string_equal(of_file, hex);
    }
    free(bytes);
    unlink(path);
    dm_error err = {0};
    assert_int_equal(file_checksum(path, of_file, &err), DM_ERROR_IO);
    assert_string_equal(err.where, path);
    assert_int_equal(file_checksum(folder, of_file, &err), DM_ERROR_IO);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_appears_at_commit),
        cmocka_unit_test(test_abandon_keeps_the_old_file),
        cmocka_unit_test(test_one_name_twice_at_once),
        cmocka_unit_test(test_threads_may_write_one_name),
        cmocka_unit_test(test_a_relative_name),
        cmocka_unit_test(test_where_nothing_can_be_written),
        cmocka_unit_test(test_devices_and_pipes_stay),
        cmocka_unit_test(test_names_as_long_as_the_file_system_takes),
        cmocka_unit_test(test_read_only_folder),
        cmocka_unit_test(test_file_size_limit),
        cmocka_unit_test(test_signal_removes_what_is_unfinished),
        cmocka_unit_test(test_writers_survive_the_removal),
        cmocka_unit_test(test_more_files_than_the_registry_holds),
        cmocka_unit_test(test_checksums),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
