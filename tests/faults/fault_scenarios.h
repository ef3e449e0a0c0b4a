/* SPDX-License-Identifier: Apache-2.0 */
/* Whole jobs, tiny, in the current folder: they read in/, write out/ and print to log/. */
#ifndef DOSEMAP_TESTS_FAULT_SCENARIOS_H
#define DOSEMAP_TESTS_FAULT_SCENARIOS_H

#include "dosemap.h"

/* Of the command line there is only the exit status and what it printed. */
typedef struct scenario_outcome {
    bool done;
    bool ended;       /* the command ended the program, which failed */
    dm_status status; /* DM_OK where only the command line knows */
    char where[512];
    char text[2048];    /* the message, in one line */
    uint64_t text_hash; /* of the texts that the library handed out */
} scenario_outcome;

typedef struct scenario {
    const char *name;
    void (*run)(scenario_outcome *outcome);
    /* Runs once; what it writes to out/ lies there before each run. May be NULL. */
    void (*run_before)(scenario_outcome *outcome);
    bool command_line;
    bool all_or_nothing; /* of several outputs none stays behind after a failure */
    bool reports_files;  /* what it says depends on which files can be read */
    bool files_only;   /* short memory may end the program while its threads are at work, and a test
                            cannot come back from that */
    bool may_do_again; /* a finished job is done once more where it cannot be told finished */
} scenario;

extern const scenario scenarios[]; /* ends with a NULL name */

/* Makes in/, out/ and log/. */
void scenarios_make_inputs(void);

/* What a command prints goes to log/ from here on, and from there into the outcome. */
void scenario_capture(void);
void scenario_release(scenario_outcome *outcome);

#endif
