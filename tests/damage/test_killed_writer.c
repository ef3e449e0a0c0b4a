/* SPDX-License-Identifier: Apache-2.0 */
/* A process killed at any moment while it writes the files of a prediction. The disk changes only in
 * open, write, fsync, rename and unlink, which pass through here (the linker's --wrap), so killing
 * before each call, and in the middle of each write, is every moment that can be told apart. What has
 * to hold afterwards: each file is the old one, the new one or not there; the dose map is there if
 * one was before; a sidecar vouches for the files beside it; and the next run succeeds. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "nifti_bytes.h"
#include "small_models.h"

/* ---- Killed at a call ----------------------------------------------------------------------- */

static _Atomic long calls;    /* so far, of this process */
static _Atomic long kill_at;  /* the call before which it ends; 0: none */
static _Atomic bool in_write; /* end in the middle of it, if it is a write */

static bool is_last(void)
{
    return ++calls == kill_at;
}

static void end_here(void)
{
    raise(SIGKILL);
}

int __real_open(const char *path, int flags, ...);
ssize_t __real_write(int fd, const void *bytes, size_t size);
int __real_rename(const char *from, const char *to);
int __real_unlink(const char *path);
int __wrap_open(const char *path, int flags, ...);
ssize_t __wrap_write(int fd, const void *bytes, size_t size);
int __wrap_fsync(int fd);
int __wrap_rename(const char *from, const char *to);
int __wrap_unlink(const char *path);

int __wrap_open(const char *path, int flags, ...)
{
    va_list rest;
    va_start(rest, flags);
    unsigned mode = flags & O_CREAT ? va_arg(rest, unsigned) : 0;
    va_end(rest);
    if (flags & O_CREAT && is_last())
        end_here();
    return __real_open(path, flags, mode);
}

ssize_t __wrap_write(int fd, const void *bytes, size_t size)
{
    if (is_last()) {
        if (in_write && __real_write(fd, bytes, size / 2) < 0)
            abort();
        end_here();
    }
    return __real_write(fd, bytes, size);
}

/* What was written outlives the process without it; only a power cut would need the disk. */
int __wrap_fsync(int fd)
{
    (void)fd;
    if (is_last())
        end_here();
    return 0;
}

int __wrap_rename(const char *from, const char *to)
{
    if (is_last())
        end_here();
    return __real_rename(from, to);
}

int __wrap_unlink(const char *path)
{
    if (is_last())
        end_here();
    return __real_unlink(path);
}

/* ---- A folder with the files of a prediction ------------------------------------------------ */

enum { DOSE, DVH, ORGANS, SIDECAR, FILES };
static const char *const roles[] = {"dose", "dvh", "organs"};

typedef struct content {
    uint8_t *bytes; /* NULL: no such file */
    size_t size;
} content;

typedef struct scene {
    char folder[64];
    dm_output_paths paths;
    dm_prediction *old, *new;
    content old_files[FILES], new_files[FILES];
} scene;

static const char *file_path(const scene *s, int file)
{
    return file == DOSE     ? s->paths.dose
           : file == DVH    ? s->paths.dvh
           : file == ORGANS ? s->paths.organs
                            : s->paths.sidecar;
}

static content load(const char *path)
{
    content c = {0};
    if (access(path, F_OK) == 0)
        c.bytes = load_bytes(path, &c.size);
    return c;
}

static bool same(const content *a, const content *b)
{
    return (a->bytes == NULL) == (b->bytes == NULL) &&
           (!a->bytes || (a->size == b->size && memcmp(a->bytes, b->bytes, a->size) == 0));
}

static void free_files(content files[FILES])
{
    for (int f = 0; f < FILES; f++)
        free(files[f].bytes);
}

/* Removes everything; returns how many partial files there were. */
static size_t clear_folder(const char *folder)
{
    size_t partial = 0;
    struct dirent *entry;
    DIR *dir = opendir(folder);
    while ((entry = readdir(dir))) {
        char path[512];
        size_t n = strlen(entry->d_name);
        snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        if (entry->d_name[0] == '.' && n > 8 && strcmp(entry->d_name + n - 8, ".partial") == 0)
            partial++;
        else if (entry->d_name[0] == '.' && n > 2)
            fail_msg("%s stays behind", path);
        if (n > 2)
            __real_unlink(path);
    }
    closedir(dir);
    return partial;
}

static void write_prediction(const scene *s, const dm_prediction *prediction)
{
    dm_error err = {0};
    no_error(dm_prediction_write(prediction, s->paths.dose, NULL, 2, &err), &err);
}

static dm_prediction *make(double activity_gbq, bool with_labels)
{
    dm_error err = {0};
    dm_model *model = identity_model(8);
    dm_volume *pet = make_pet(40, 40, 40);
    dm_labels *labels = NULL;
    dm_predict_options options = plain_options();
    int32_t *ids = calloc(64000, sizeof *ids);
    for (size_t i = 5000; i < 15000; i++)
        ids[i] = 2;
    no_error(dm_labels_create(&pet->grid, ids, NULL, &labels, &err), &err);
    options.activity_gbq = activity_gbq;
    dm_prediction *prediction = predict(model, &options, pet, with_labels ? labels : NULL);
    free(ids);
    dm_labels_free(labels);
    dm_volume_free(pet);
    dm_model_free(model);
    return prediction;
}

/* had_old: 0 none, 1 without and 2 with labels. */
static void begin_scene(scene *s, const char *suffix, int had_old, bool with_labels)
{
    char dose[128];
    dm_error err = {0};
    memset(s, 0, sizeof *s);
    make_test_folder(s->folder);
    snprintf(dose, sizeof dose, "%s/out%s", s->folder, suffix);
    no_error(dm_output_paths_from(dose, &s->paths, &err), &err);
    s->new = make(7.4, with_labels);
    write_prediction(s, s->new);
    for (int f = 0; f < FILES; f++)
        s->new_files[f] = load(file_path(s, f));
    clear_folder(s->folder);
    if (had_old) {
        s->old = make(6, had_old == 2);
        write_prediction(s, s->old);
        for (int f = 0; f < FILES; f++)
            s->old_files[f] = load(file_path(s, f));
        clear_folder(s->folder);
    }
}

static void end_scene(scene *s)
{
    clear_folder(s->folder);
    rmdir(s->folder);
    dm_prediction_free(s->old);
    dm_prediction_free(s->new);
    free_files(s->old_files);
    free_files(s->new_files);
}

/* ---- What has to hold ----------------------------------------------------------------------- */

/* A sidecar names the dose map that is there, and tables only with their own content. */
static void check_sidecar(const scene *s, long call)
{
    json_error_t error;
    size_t i;
    json_t *entry, *root = json_load_file(s->paths.sidecar, JSON_REJECT_DUPLICATES, &error);
    if (!root)
        fail_msg("call %ld: a sidecar in pieces: %s", call, error.text);
    json_array_foreach(json_object_get(root, "Outputs"), i, entry)
    {
        char hex[17] = "none";
        const char *role = json_string_value(json_object_get(entry, "Role"));
        for (int f = DOSE; f < SIDECAR; f++) {
            if (strcmp(role, roles[f]) != 0 || (f != DOSE && access(file_path(s, f), F_OK) != 0))
                continue;
            dm_status status = file_checksum(file_path(s, f), hex, NULL);
            if (status != DM_OK ||
                strcmp(hex, json_string_value(json_object_get(entry, "XXH64"))) != 0)
                fail_msg("call %ld: the sidecar vouches for another %s", call, role);
        }
    }
    json_decref(root);
}

static void check_state(const scene *s, long call)
{
    for (int f = 0; f < SIDECAR; f++) {
        content now = load(file_path(s, f));
        if (now.bytes && !same(&now, &s->old_files[f]) && !same(&now, &s->new_files[f]))
            fail_msg("call %ld: %s is neither old nor new", call, file_path(s, f));
        if (f == DOSE && s->old && !now.bytes)
            fail_msg("call %ld: the old dose map is gone", call);
        free(now.bytes);
    }
    if (access(s->paths.sidecar, F_OK) == 0)
        check_sidecar(s, call);
    else if (dm_prediction_is_complete(s->paths.dose))
        fail_msg("call %ld: complete without a sidecar", call);
}

/* The next run makes everything, whatever was left behind. */
static void check_next_run(const scene *s, long call)
{
    write_prediction(s, s->new);
    for (int f = 0; f < SIDECAR; f++) {
        content now = load(file_path(s, f));
        if (!same(&now, &s->new_files[f]))
            fail_msg("call %ld: the next run does not write %s", call, file_path(s, f));
        free(now.bytes);
    }
    assert_true(dm_prediction_is_complete(s->paths.dose));
}

/* Writes in a child that dies at the call; true if it did. */
static bool die_at(const scene *s, long call, bool middle)
{
    int status;
    pid_t child = fork();
    if (child == 0) {
        calls = 0;
        in_write = middle;
        kill_at = call;
        _exit(dm_prediction_write(s->new, s->paths.dose, NULL, 2, NULL) == DM_OK ? 0 : 1);
    }
    assert_true(child > 0);
    assert_int_equal(waitpid(child, &status, 0), child);
    if (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL)
        return true;
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    return false;
}

static void kill_everywhere(const char *suffix, int had_old, bool with_labels)
{
    scene s;
    size_t points = 0, partial = 0;
    bool died = true;
    begin_scene(&s, suffix, had_old, with_labels);
    for (long call = 1; died; call++)
        for (int middle = 0; middle < 2; middle++) {
            for (int f = 0; f < FILES; f++)
                if (s.old_files[f].bytes)
                    save_bytes(file_path(&s, f), s.old_files[f].bytes, s.old_files[f].size);
            died = die_at(&s, call, middle);
            points += died;
            check_state(&s, call);
            check_next_run(&s, call);
            partial += clear_folder(s.folder);
        }
    printf("%-8s over %s, new %s labels: %zu kill points, %zu left a partial file\n", suffix,
           had_old == 0   ? "nothing"
           : had_old == 1 ? "a map"
                          : "a map with tables",
           with_labels ? "with" : "without", points, partial);
    assert_true(points > 20 && partial > 4);
    end_scene(&s);
}

static void test_new_files(void **state)
{
    (void)state;
    kill_everywhere(".nii", 0, true);
    kill_everywhere(".nii.gz", 0, true);
    kill_everywhere(".nii.zst", 0, false);
}

static void test_over_old_files(void **state)
{
    (void)state;
    kill_everywhere(".nii", 1, true);
    kill_everywhere(".nii.gz", 2, true);
    kill_everywhere(".nii.gz", 2, false);
}

/* In a container every run may have the same process number, and meets its own leftovers. */
static void test_leftovers_of_the_same_number(void **state)
{
    (void)state;
    static const char *const names[] = {"out.nii.gz", "out.json", "out_dvh.tsv", "out_organs.tsv"};
    scene s;
    begin_scene(&s, ".nii.gz", 0, true);
    for (size_t i = 0; i < 4; i++)
        for (int again = 0; again < 3; again++) {
            char path[256], number[16] = "";
            if (again)
                snprintf(number, sizeof number, ".%d", again);
            snprintf(path, sizeof path, "%s/.%s.%ld%s.partial", s.folder, names[i], (long)getpid(),
                     number);
            save_bytes(path, (const uint8_t *)"half", 4);
        }
    check_next_run(&s, 0);
    assert_int_equal(clear_folder(s.folder), 12);
    end_scene(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_new_files),
        cmocka_unit_test(test_over_old_files),
        cmocka_unit_test(test_leftovers_of_the_same_number),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
