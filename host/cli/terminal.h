/* SPDX-License-Identifier: Apache-2.0 */
/* What the person at the terminal sees: messages, a progress bar, a clean end on Ctrl-C. */
#ifndef DOSEMAP_CLI_TERMINAL_H
#define DOSEMAP_CLI_TERMINAL_H

#include "dosemap.h"

/* Partial output files are removed on SIGHUP, SIGINT and SIGTERM, and the exit status is 128 +
 * signal. */
void terminal_install_signal_handlers(void);

/* "dosemap: error: ..." on stderr. */
void terminal_error(const dm_error *err);

typedef struct progress_bar {
    const char *name; /* of the volume */
    bool enabled;
    int shown; /* percent on the screen, -1 for none */
} progress_bar;

/* Enabled only where stderr is a terminal and `quiet` is off. */
void progress_begin(progress_bar *bar, const char *name, bool quiet);
/* A dm_progress; `user` is the bar. */
int progress_show(void *user, double share, const char *stage);
/* Off the screen until it is shown again. */
void progress_hide(progress_bar *bar);

#endif
