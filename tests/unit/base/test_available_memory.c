/* SPDX-License-Identifier: Apache-2.0 */
/* What a process can have, from made-up /proc and /sys. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/available_memory.h"

#define MIB ((size_t)1 << 20)

static char root[64];

/* Writes ROOT/path with its folders. */
static void put(const char *path, const char *text)
{
    char full[512];
    snprintf(full, sizeof full, "%s%s", root, path);
    for (char *p = full + strlen(root) + 1; *p; p++)
        if (*p == '/') {
            *p = '\0';
            assert_true(mkdir(full, 0777) == 0 || errno == EEXIST);
            *p = '/';
        }
    FILE *file = fopen(full, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

static int new_root(void **state)
{
    (void)state;
    strcpy(root, "/tmp/dosemap-memory-XXXXXX");
    return mkdtemp(root) ? 0 : -1;
}

static int drop_root(void **state)
{
    (void)state;
    char command[128];
    snprintf(command, sizeof command, "rm -r '%s'", root);
    return system(command);
}

/* A machine with 1000 MiB free where this process holds 10 pages. */
static size_t machine(void)
{
    size_t own = 10 * (size_t)sysconf(_SC_PAGESIZE);
    put("/proc/meminfo", "MemTotal:  2048000 kB\nMemFree: 1 kB\nMemAvailable:  1024000 kB\n");
    put("/proc/self/statm", "100 10 5 1 0 20 0\n");
    return own;
}

static void test_machine(void **state)
{
    (void)state;
    assert_int_equal(available_memory_under(root), SIZE_MAX); /* nothing is known */
    size_t own = machine();
    assert_int_equal(available_memory_under(root), 1000 * MIB + own);
}

static void test_groups_of_version_2(void **state)
{
    (void)state;
    size_t own = machine();
    put("/proc/self/cgroup", "0::/user/job\n");
    put("/sys/fs/cgroup/user/job/memory.max", "max\n");
    put("/sys/fs/cgroup/user/job/memory.current", "104857600\n");
    assert_int_equal(available_memory_under(root), 1000 * MIB + own);
    put("/sys/fs/cgroup/user/job/memory.max", "524288000\n");
    assert_int_equal(available_memory_under(root), 400 * MIB + own);
    /* What the group only caches is given back. */
    put("/sys/fs/cgroup/user/job/memory.stat", "anon 1\nactive_file 7\ninactive_file 52428800\n");
    assert_int_equal(available_memory_under(root), 450 * MIB + own);
    put("/sys/fs/cgroup/user/memory.max", "314572800\n");
    put("/sys/fs/cgroup/user/memory.current", "209715200\n");
    assert_int_equal(available_memory_under(root), 100 * MIB + own);
    /* Over its limit already. */
    put("/sys/fs/cgroup/user/memory.current", "409715200\n");
    assert_int_equal(available_memory_under(root), own);
}

/* Inside a container the path is that of the outside, the mount's root is the group. */
static void test_container(void **state)
{
    (void)state;
    size_t own = machine();
    put("/proc/self/cgroup", "0::/outside/name\n");
    put("/sys/fs/cgroup/memory.max", "524288000\n");
    put("/sys/fs/cgroup/memory.current", "104857600\n");
    assert_int_equal(available_memory_under(root), 400 * MIB + own);
}

static void test_groups_of_version_1(void **state)
{
    (void)state;
    size_t own = machine();
    put("/proc/self/cgroup", "5:cpu,cpuacct:/x\n4:memory:/job\n1:name=systemd:/y\nnonsense\n");
    put("/sys/fs/cgroup/memory/job/memory.limit_in_bytes", "314572800\n");
    put("/sys/fs/cgroup/memory/job/memory.usage_in_bytes", "209715200\n");
    put("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
    put("/sys/fs/cgroup/memory/memory.usage_in_bytes", "209715200\n");
    assert_int_equal(available_memory_under(root), 100 * MIB + own);
}

static void test_limits_of_the_process(void **state)
{
    (void)state;
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    skip(); /* sanitizers need more address space than any limit leaves */
#endif
    struct rlimit before, limit;
    unsigned long long pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    assert_non_null(file);
    assert_int_equal(fscanf(file, "%llu", &pages), 1);
    fclose(file);
    size_t free_of_limit = available_memory();
    getrlimit(RLIMIT_AS, &before);
    limit = before;
    limit.rlim_cur = (rlim_t)pages * (rlim_t)sysconf(_SC_PAGESIZE) + 64 * MIB;
    assert_int_equal(setrlimit(RLIMIT_AS, &limit), 0);
    size_t limited = available_memory();
    setrlimit(RLIMIT_AS, &before);
    assert_true(limited < free_of_limit);
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    size_t resident = (size_t)usage.ru_maxrss * 1024;
    assert_true(limited <= resident + 65 * MIB); /* the file read above is of it */
    assert_true(limited >= 60 * MIB);

    getrlimit(RLIMIT_DATA, &before);
    limit = before;
    limit.rlim_cur = free_of_limit / 2;
    assert_int_equal(setrlimit(RLIMIT_DATA, &limit), 0);
    assert_int_equal(available_memory(), free_of_limit / 2);
    setrlimit(RLIMIT_DATA, &before);
}

static void test_words(void **state)
{
    (void)state;
    char text[SIZE_TEXT];
    assert_string_equal(size_text(512, text), "512 bytes");
    assert_string_equal(size_text(1536, text), "1.5 KiB");
    assert_string_equal(size_text(4.0 * 1024 * 1024 * 1024, text), "4.0 GiB");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_machine, new_root, drop_root),
        cmocka_unit_test_setup_teardown(test_groups_of_version_2, new_root, drop_root),
        cmocka_unit_test_setup_teardown(test_container, new_root, drop_root),
        cmocka_unit_test_setup_teardown(test_groups_of_version_1, new_root, drop_root),
        cmocka_unit_test(test_limits_of_the_process),
        cmocka_unit_test(test_words)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
