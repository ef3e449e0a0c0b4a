/* SPDX-License-Identifier: Apache-2.0 */
/* What tuning found, on disk: files that were damaged, cut, moved or made for something else; several
 * writers at once; folders that cannot be written. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/output_file.h"
#include "predict/cuda/tuning_file.h"

static char folder[] = "/tmp/dosemap-tuning-XXXXXX";

static const tuning_key some_key = {.library = "cuDNN 9.19.0",
                                    .device = "NVIDIA \"H100\" 80GB",
                                    .capability = {9, 0},
                                    .multiprocessors = 132,
                                    .network = "0123456789abcdef",
                                    .tile = {32, 40, 48},
                                    .precision = "bf16",
                                    .batch = 64,
                                    .driver = 13000,
                                    .build = "feed"};
static const tuned_layer some_layers[] = {{"8 * bf16 32x32x32x32 -> the same", "library", true,
                                           "eng1_k2=3: tensor cores",
                                           "{\"words\":\"of \\\\ the library\"}", 1.25e-4},
                                          {"8 * bf16 of 64", "halo", false, NULL, NULL, 3e-5},
                                          {"1 * bf16", "library", false, "eng2", NULL, 0.5}};
enum { LAYERS = sizeof some_layers / sizeof *some_layers };

static int make_folder(void **state)
{
    (void)state;
    strcpy(strrchr(folder, '-'), "-XXXXXX");
    assert_non_null(mkdtemp(folder));
    return setenv("DOSEMAP_CACHE_DIR", folder, 1);
}

/* Everything in it; how many there were. */
static size_t empty_folder(const char *path)
{
    struct dirent *entry;
    char name[600];
    size_t n = 0;
    DIR *dir = opendir(path);
    assert_non_null(dir);
    while ((entry = readdir(dir)))
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0) {
            snprintf(name, sizeof name, "%s/%s", path, entry->d_name);
            if (remove(name) != 0) {
                empty_folder(name);
                assert_int_equal(rmdir(name), 0);
            }
            n++;
        }
    closedir(dir);
    return n;
}

static int remove_folder(void **state)
{
    (void)state;
    empty_folder(folder);
    return rmdir(folder);
}

/* Its path. */
static const char *save(const tuning_key *key, const tuned_layer *layers, size_t n)
{
    static char path[TUNING_PATH];
    char checksum[17], again[17];
    dm_error err = {0};
    dm_status status = tuning_save(key, layers, n, path, checksum, &err);
    if (status != DM_OK)
        fail_msg("%s: %s", err.where, err.what);
    assert_int_equal(file_checksum(path, again, NULL), DM_OK);
    assert_string_equal(checksum, again);
    return path;
}

static tuning *load(const tuning_key *key, char problem[TUNING_PROBLEM])
{
    tuning *t = NULL;
    dm_error err = {0};
    assert_int_equal(tuning_load(key, &t, problem, &err), DM_OK);
    return t;
}

static void assert_not_used(const tuning_key *key, const char *why)
{
    char problem[TUNING_PROBLEM];
    tuning *t = load(key, problem);
    assert_null(t);
    if (why ? !strstr(problem, why) || !strstr(problem, "bench --tune") : problem[0])
        fail_msg("'%s' is not '%s'", problem, why ? why : "");
}

static bool same_text(const char *a, const char *b)
{
    return a && b ? strcmp(a, b) == 0 : !a && !b;
}

static void assert_layer(const tuning *t, const tuned_layer *l)
{
    tuned_layer found;
    assert_true(tuning_find(t, l->operands, &found));
    assert_string_equal(found.way, l->way);
    assert_int_equal(found.joined, l->joined);
    assert_true(same_text(found.engine, l->engine) && same_text(found.saved, l->saved));
    assert_true(found.seconds == l->seconds);
}

static void write_file(const char *path, const void *bytes, size_t size)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, size, f), size);
    assert_int_equal(fclose(f), 0);
}

static unsigned char *read_file(const char *path, size_t *size)
{
    struct stat info;
    assert_int_equal(stat(path, &info), 0);
    unsigned char *bytes = malloc((size_t)info.st_size + 1);
    FILE *f = fopen(path, "rb");
    assert_true(f && bytes);
    *size = fread(bytes, 1, (size_t)info.st_size, f);
    fclose(f);
    assert_int_equal(*size, info.st_size);
    return bytes;
}

/* ---- Keeping and finding -------------------------------------------------------------------- */

static void test_round_trip(void **state)
{
    (void)state;
    char problem[TUNING_PROBLEM], checksum[17];
    tuned_layer none;
    assert_not_used(&some_key, NULL);
    const char *path = save(&some_key, some_layers, LAYERS);
    tuning *t = load(&some_key, problem);
    assert_non_null(t);
    assert_string_equal(problem, "");
    assert_string_equal(tuning_path(t), path);
    assert_int_equal(file_checksum(path, checksum, NULL), DM_OK);
    assert_string_equal(tuning_checksum(t), checksum);
    for (size_t i = 0; i < LAYERS; i++)
        assert_layer(t, &some_layers[i]);
    assert_false(tuning_find(t, "8 * bf16", &none));
    assert_false(tuning_find(NULL, some_layers[0].operands, &none));
    tuning_free(t);
}

/* A network without convolutions that can be told apart is none to fall over. */
static void test_no_layers(void **state)
{
    (void)state;
    char problem[TUNING_PROBLEM];
    tuned_layer none;
    save(&some_key, NULL, 0);
    tuning *t = load(&some_key, problem);
    assert_non_null(t);
    assert_false(tuning_find(t, "", &none));
    tuning_free(t);
}

/* More than can be read again: the last plans stay behind, not their names. */
static void test_large_plans(void **state)
{
    (void)state;
    enum { N = 4, SIZE = 2 << 20 };
    char problem[TUNING_PROBLEM], names[N][16];
    char *words = malloc(SIZE);
    tuned_layer layers[N], found;
    assert_non_null(words);
    memset(words, '"', SIZE - 1); /* each takes two bytes of JSON */
    memset(words, 'x', SIZE / 2);
    words[SIZE - 1] = '\0';
    for (int i = 0; i < N; i++) {
        snprintf(names[i], sizeof names[i], "%d", i);
        layers[i] = (tuned_layer){names[i], "library", true, "eng3", words, 1};
    }
    save(&some_key, layers, N);
    tuning *t = load(&some_key, problem);
    if (!t)
        fail_msg("%s", problem);
    for (int i = 0; i < N; i++) {
        assert_true(tuning_find(t, names[i], &found));
        assert_string_equal(found.engine, "eng3");
        assert_true(!found.saved || strcmp(found.saved, words) == 0);
    }
    assert_true(tuning_find(t, names[0], &found) && found.saved);
    assert_true(tuning_find(t, names[N - 1], &found) && !found.saved);
    tuning_free(t);
    free(words);
}

/* ---- Keys ----------------------------------------------------------------------------------- */

#define CHANGED(change, why)                                                                       \
    do {                                                                                           \
        tuning_key k = some_key;                                                                   \
        change;                                                                                    \
        assert_not_used(&k, why);                                                                  \
    } while (0)

static void test_keys(void **state)
{
    (void)state;
    char moved[TUNING_PATH];
    char *path = strdup(save(&some_key, some_layers, LAYERS));
    CHANGED(strcpy(k.library, "cuDNN 9.20.0"), NULL);
    CHANGED(strcpy(k.device, "NVIDIA H200"), NULL);
    CHANGED(k.capability[1] = 1, NULL);
    CHANGED(k.multiprocessors = 66, NULL);
    CHANGED(k.network[3] = 'f', NULL);
    CHANGED(k.tile[0] = 48, NULL);
    CHANGED(strcpy(k.precision, "fp16"), NULL);
    CHANGED(k.batch = 32, NULL);
    CHANGED(k.driver = 13010, "another driver");
    CHANGED(strcpy(k.build, "beef"), "another build");
    /* In the place of another one's. */
    tuning_key other = some_key;
    other.batch = 32;
    snprintf(moved, sizeof moved, "%s", save(&other, some_layers, LAYERS));
    assert_int_equal(rename(path, moved), 0);
    assert_not_used(&other, "another network or device");
    free(path);
}

/* ---- Damage --------------------------------------------------------------------------------- */

static void test_every_byte_counts(void **state)
{
    (void)state;
    static const unsigned char flips[] = {0x01, 0x20, 0x80, 0xff};
    size_t size;
    const char *path = save(&some_key, some_layers, LAYERS);
    unsigned char *bytes = read_file(path, &size);
    for (size_t i = 0; i < size; i++)
        for (size_t f = 0; f < sizeof flips; f++) {
            bytes[i] ^= flips[f];
            write_file(path, bytes, size);
            assert_not_used(&some_key, "is damaged");
            bytes[i] ^= flips[f];
        }
    write_file(path, bytes, size);
    char problem[TUNING_PROBLEM];
    tuning *t = load(&some_key, problem);
    assert_non_null(t);
    tuning_free(t);
    free(bytes);
}

static void test_lengths(void **state)
{
    (void)state;
    size_t size;
    const char *path = save(&some_key, some_layers, LAYERS);
    unsigned char *bytes = read_file(path, &size);
    for (size_t n = 0; n < size; n++) {
        write_file(path, bytes, n);
        assert_not_used(&some_key, "is damaged");
    }
    bytes[size] = '\n';
    write_file(path, bytes, size + 1);
    assert_not_used(&some_key, "is damaged");
    free(bytes);
}

/* With a checksum that is right. */
static void write_with_checksum(const char *path, const char *text)
{
    char hex[17], whole[4096];
    bytes_checksum(text, strlen(text), hex);
    int n = snprintf(whole, sizeof whole, "%s,\n  \"xxh64\": \"%s\"\n}\n", text, hex);
    write_file(path, whole, (size_t)n);
}

/* The text of a whole file up to its last line, with one word in the place of another. */
static void replace(const char *path, const char *old, const char *new)
{
    size_t size;
    char text[4096];
    char *bytes = (char *)read_file(path, &size);
    bytes[size] = '\0';
    *strstr(bytes, ",\n  \"xxh64\"") = '\0';
    char *at = strstr(bytes, old);
    assert_non_null(at);
    snprintf(text, sizeof text, "%.*s%s%s", (int)(at - bytes), bytes, new, at + strlen(old));
    write_with_checksum(path, text);
    free(bytes);
}

static void test_other_contents(void **state)
{
    (void)state;
    static const char *const cases[][3] = {
        {"dosemap tuning 1", "dosemap tuning 2", "another format"},
        {"\"format\"", "\"frmat\"", "another format"},
        {"\"layers\"", "\"players\"", "is damaged"},
        {"\"operands\": \"8 * bf16 of 64\"", "\"operands\": 8", "is damaged"},
        {"\"way\": \"halo\"", "\"way\": null", "is damaged"},
        {"\"joined\": true", "\"joined\": 1", "is damaged"},
        {"\"seconds\": 0.5", "\"seconds\": \"0.5\"", "is damaged"},
        {"\"engine\": \"eng2\"", "\"engine\": []", "is damaged"},
        {"\"plan\": null", "\"plan\": {}", "is damaged"},
        {"\"batch\": 64", "\"batch\": 65", "another network or device"},
        {"\"layers\": [", "\"layers\": [[", "is damaged"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *path = save(&some_key, some_layers, LAYERS);
        replace(path, cases[i][0], cases[i][1]);
        assert_not_used(&some_key, cases[i][2]);
    }
    /* The way of doing so is not what is wrong. */
    char problem[TUNING_PROBLEM];
    tuned_layer found;
    replace(save(&some_key, some_layers, LAYERS), "\"way\": \"halo\"", "\"way\": \"any\"");
    tuning *t = load(&some_key, problem);
    assert_true(tuning_find(t, some_layers[1].operands, &found));
    assert_string_equal(found.way, "any");
    tuning_free(t);
}

static void test_permissions(void **state)
{
    (void)state;
    const char *path = save(&some_key, some_layers, LAYERS);
    assert_int_equal(chmod(path, 0666), 0);
    assert_not_used(&some_key, "can be written by anybody");
    if (geteuid() == 0) {
        assert_int_equal(chmod(path, 0644), 0);
        assert_int_equal(chown(path, 12345, (gid_t)-1), 0);
        assert_not_used(&some_key, "belongs to somebody else");
    } else {
        assert_int_equal(chmod(path, 0), 0);
        assert_not_used(&some_key, "cannot be read");
    }
    assert_int_equal(unlink(path), 0);
    assert_int_equal(mkdir(path, 0755), 0);
    assert_not_used(&some_key, "is no file");
}

/* ---- Folders -------------------------------------------------------------------------------- */

static void assert_lies_in(const char *where)
{
    const char *path = save(&some_key, some_layers, LAYERS);
    if (strncmp(path, where, strlen(where)) != 0 || path[strlen(where)] != '/')
        fail_msg("%s is not in %s", path, where);
    assert_int_equal(unlink(path), 0);
}

static void test_places(void **state)
{
    (void)state;
    char below[200], expected[300], problem[TUNING_PROBLEM];
    char *home = getenv("HOME") ? strdup(getenv("HOME")) : NULL;
    dm_error err = {0};
    unsetenv("XDG_CACHE_HOME");
    unsetenv("DOSEMAP_CACHE_DIR");
    snprintf(below, sizeof below, "%s/home", folder);
    setenv("HOME", below, 1);
    snprintf(expected, sizeof expected, "%s/.cache/dosemap", below);
    assert_lies_in(expected);
    setenv("XDG_CACHE_HOME", "relative", 1);
    assert_lies_in(expected);
    snprintf(below, sizeof below, "%s/xdg", folder);
    setenv("XDG_CACHE_HOME", below, 1);
    snprintf(expected, sizeof expected, "%s/dosemap", below);
    assert_lies_in(expected);
    setenv("DOSEMAP_CACHE_DIR", "", 1);
    assert_lies_in(expected);
    snprintf(below, sizeof below, "%s/a/b", folder);
    setenv("DOSEMAP_CACHE_DIR", below, 1);
    assert_lies_in(below);
    unsetenv("DOSEMAP_CACHE_DIR");
    unsetenv("XDG_CACHE_HOME");
    unsetenv("HOME");
    assert_int_equal(tuning_check_folder(&some_key, &err), DM_ERROR_VALUE);
    assert_non_null(strstr(err.remedy, "DOSEMAP_CACHE_DIR"));
    assert_null(load(&some_key, problem));
    assert_string_equal(problem, "");
    if (home)
        setenv("HOME", home, 1);
    free(home);
}

static void test_folders_that_cannot_be_written(void **state)
{
    (void)state;
    char in_a_file[200], problem[TUNING_PROBLEM], path[TUNING_PATH], hex[17];
    snprintf(in_a_file, sizeof in_a_file, "%s/file", folder);
    write_file(in_a_file, "x", 1);
    strcat(in_a_file, "/below");
    const char *const places[] = {in_a_file, "/proc/dosemap", "/proc/self"};
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        dm_error err = {0};
        setenv("DOSEMAP_CACHE_DIR", places[i], 1);
        assert_int_equal(tuning_check_folder(&some_key, &err), DM_ERROR_IO);
        assert_true(strncmp(err.where, places[i], strlen("/proc/self")) == 0);
        assert_non_null(strstr(err.remedy, "DOSEMAP_CACHE_DIR"));
        err = (dm_error){0};
        assert_int_equal(tuning_save(&some_key, some_layers, LAYERS, path, hex, &err), DM_ERROR_IO);
        assert_null(load(&some_key, problem));
    }
}

/* Looking whether a file can be written leaves nothing behind, and what is there alone. */
static void test_checking_changes_nothing(void **state)
{
    (void)state;
    char problem[TUNING_PROBLEM];
    assert_int_equal(tuning_check_folder(&some_key, NULL), DM_OK);
    assert_int_equal(empty_folder(folder), 0);
    save(&some_key, some_layers, LAYERS);
    assert_int_equal(tuning_check_folder(&some_key, NULL), DM_OK);
    tuning *t = load(&some_key, problem);
    assert_non_null(t);
    tuning_free(t);
    assert_int_equal(empty_folder(folder), 1);
}

/* ---- Several at once ------------------------------------------------------------------------ */

enum { WRITERS = 4, ROUNDS = 40 };

/* All layers of a file come from one writer. */
static bool is_of_one_writer(const tuning *t)
{
    tuned_layer first, other;
    char name[16];
    if (!tuning_find(t, "0", &first))
        return false;
    for (int i = 1; i < 30; i++) {
        snprintf(name, sizeof name, "%d", i);
        if (!tuning_find(t, name, &other) || other.seconds != first.seconds)
            return false;
    }
    return true;
}

static void write_often(int writer)
{
    char names[30][16], path[TUNING_PATH], hex[17];
    tuned_layer layers[30];
    for (int round = 0; round < ROUNDS; round++) {
        for (int i = 0; i < 30; i++) {
            snprintf(names[i], sizeof names[i], "%d", i);
            layers[i] = (tuned_layer){names[i], "halo", false, NULL, NULL, 1.5 + writer};
        }
        if (tuning_save(&some_key, layers, 30, path, hex, NULL) != DM_OK)
            _exit(1);
    }
    _exit(0);
}

static void test_writers_at_once(void **state)
{
    (void)state;
    pid_t child[WRITERS];
    char problem[TUNING_PROBLEM];
    int status, ended = 0, seen = 0;
    for (int i = 0; i < WRITERS; i++) {
        child[i] = fork();
        assert_true(child[i] >= 0);
        if (child[i] == 0)
            write_often(i);
    }
    while (ended < WRITERS) {
        tuning *t = load(&some_key, problem);
        if (problem[0] || (t && !is_of_one_writer(t)))
            fail_msg("'%s'", problem);
        seen += t != NULL;
        tuning_free(t);
        if (waitpid(-1, &status, WNOHANG) > 0) {
            assert_int_equal(status, 0);
            ended++;
        }
    }
    assert_true(seen > 0);
    assert_int_equal(empty_folder(folder), 1);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, make_folder, remove_folder)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_round_trip),
        TEST(test_no_layers),
        TEST(test_large_plans),
        TEST(test_keys),
        TEST(test_every_byte_counts),
        TEST(test_lengths),
        TEST(test_other_contents),
        TEST(test_permissions),
        TEST(test_places),
        TEST(test_folders_that_cannot_be_written),
        TEST(test_checking_changes_nothing),
        TEST(test_writers_at_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
