/* SPDX-License-Identifier: Apache-2.0 */
#include "base/available_memory.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#define PATH_ROOM 4352

/* Finds `key` at the start of a line and reads the number behind it. */
static bool read_keyed(const char *path, const char *key, size_t *value)
{
    char line[256];
    bool found = false;
    FILE *file = fopen(path, "re");
    while (file && !found && fgets(line, sizeof line, file)) {
        size_t n = strlen(key);
        unsigned long long number;
        found = strncmp(line, key, n) == 0 && sscanf(line + n, " %llu", &number) == 1;
        if (found)
            *value = (size_t)number;
    }
    if (file)
        fclose(file);
    return found;
}

/* Total and resident size of this process in bytes. */
static void own_size(const char *root, size_t *total, size_t *resident)
{
    char path[PATH_ROOM];
    unsigned long long pages[2] = {0, 0};
    long page = sysconf(_SC_PAGESIZE);
    snprintf(path, sizeof path, "%s/proc/self/statm", root);
    FILE *file = fopen(path, "re");
    if (file && fscanf(file, "%llu %llu", &pages[0], &pages[1]) != 2)
        pages[0] = pages[1] = 0;
    if (file)
        fclose(file);
    *total = (size_t)pages[0] * (size_t)page;
    *resident = (size_t)pages[1] * (size_t)page;
}

static size_t smaller(size_t a, size_t b)
{
    return a < b ? a : b;
}

static size_t difference(size_t a, size_t b)
{
    return a > b ? a - b : 0;
}

/* ---- Control groups ------------------------------------------------------------------------- */

/* What the files of a version call things. */
typedef struct group_files {
    const char *mount, *limit, *usage, *reclaimable;
} group_files;

static const group_files version_1 = {"/sys/fs/cgroup/memory", "memory.limit_in_bytes",
                                      "memory.usage_in_bytes", "total_inactive_file"};
static const group_files version_2 = {"/sys/fs/cgroup", "memory.max", "memory.current",
                                      "inactive_file"};

/* Room that one group leaves; SIZE_MAX without a limit ("max", or no such group). */
static size_t group_room(const char *root, const group_files *files, const char *group)
{
    char path[3][PATH_ROOM];
    size_t limit, usage, cached = 0;
    const char *const names[3] = {files->limit, files->usage, "memory.stat"};
    for (int i = 0; i < 3; i++)
        if (snprintf(path[i], PATH_ROOM, "%s%s%s/%s", root, files->mount, group, names[i]) >=
            PATH_ROOM)
            return SIZE_MAX;
    if (!read_keyed(path[0], "", &limit) || !read_keyed(path[1], "", &usage))
        return SIZE_MAX;
    read_keyed(path[2], files->reclaimable, &cached);
    return difference(limit, difference(usage, cached));
}

/* The group and all above it. Inside a container its path may lie above the mount's root; then the
 * root is the group. */
static size_t groups_room(const char *root, const group_files *files, char *group)
{
    size_t room = SIZE_MAX;
    for (;;) {
        room = smaller(room, group_room(root, files, group));
        char *slash = strrchr(group, '/');
        if (!slash)
            return room;
        *slash = '\0';
    }
}

static size_t all_groups_room(const char *root)
{
    char path[PATH_ROOM], line[4096];
    size_t room = SIZE_MAX;
    snprintf(path, sizeof path, "%s/proc/self/cgroup", root);
    FILE *file = fopen(path, "re");
    while (file && fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = '\0';
        char *controllers = strchr(line, ':');
        char *group = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!group)
            continue;
        *group++ = '\0';
        controllers++;
        if (controllers[0] == '\0')
            room = smaller(room, groups_room(root, &version_2, group));
        else if (strstr(controllers, "memory"))
            room = smaller(room, groups_room(root, &version_1, group));
    }
    if (file)
        fclose(file);
    return room;
}

/* ---- All together --------------------------------------------------------------------------- */

size_t available_memory_under(const char *root)
{
    char path[PATH_ROOM];
    size_t machine = SIZE_MAX, total, resident;
    own_size(root, &total, &resident);
    snprintf(path, sizeof path, "%s/proc/meminfo", root);
    if (read_keyed(path, "MemAvailable:", &machine))
        machine = machine < SIZE_MAX / 1024 ? machine * 1024 : SIZE_MAX;
    size_t room = smaller(machine, all_groups_room(root));
    return room < SIZE_MAX - resident ? room + resident : SIZE_MAX;
}

size_t available_memory(void)
{
    struct rlimit limit;
    size_t total, resident, all = available_memory_under("");
    own_size("", &total, &resident);
    size_t not_resident = difference(total, resident); /* mapped and never touched */
    if (getrlimit(RLIMIT_AS, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY)
        all = smaller(all, difference((size_t)limit.rlim_cur, not_resident));
    if (getrlimit(RLIMIT_DATA, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY)
        all = smaller(all, (size_t)limit.rlim_cur);
    return all;
}

const char *size_text(double bytes, char text[SIZE_TEXT])
{
    static const char *const units[] = {"bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    size_t unit = 0;
    while (bytes >= 1024 && unit + 1 < sizeof units / sizeof *units) {
        bytes /= 1024;
        unit++;
    }
    snprintf(text, SIZE_TEXT, unit > 0 ? "%.1f %s" : "%.0f %s", bytes, units[unit]);
    return text;
}
