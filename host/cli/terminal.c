/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/terminal.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static void on_signal(int number)
{
    dm_remove_partial_files();
    _exit(128 + number);
}

void terminal_install_signal_handlers(void)
{
    static const int numbers[] = {SIGHUP, SIGINT, SIGTERM};
    struct sigaction action, before;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_signal;
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        /* Under nohup, or in the background of a script, a signal that is ignored stays so. */
        if (sigaction(numbers[i], NULL, &before) == 0 && before.sa_handler != SIG_IGN)
            sigaction(numbers[i], &action, NULL);
    /* Writes past a file-size limit then fail with an error that can be reported. */
    signal(SIGXFSZ, SIG_IGN);
}

void terminal_error(const dm_error *err)
{
    char text[sizeof *err + 64];
    fprintf(stderr, "dosemap: error: %s\n", dm_error_text(err, text, sizeof text));
}

void progress_begin(progress_bar *bar, const char *name, bool quiet)
{
    *bar = (progress_bar){.name = name, .enabled = !quiet && isatty(STDERR_FILENO), .shown = -1};
}

int progress_show(void *user, double share, const char *stage)
{
    enum { WIDTH = 30 };
    progress_bar *bar = user;
    int percent = (int)(100.0 * share);
    if (!bar->enabled || percent == bar->shown)
        return 0;
    bar->shown = percent;
    int filled = percent * WIDTH / 100;
    fprintf(stderr, "\r%s [%.*s%*s] %3d %% %s\033[K", bar->name, filled,
            "##############################", WIDTH - filled, "", percent, stage);
    return 0;
}

void progress_hide(progress_bar *bar)
{
    if (bar->enabled && bar->shown >= 0)
        fprintf(stderr, "\r\033[K");
    bar->shown = -1;
}
