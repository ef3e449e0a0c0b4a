/* SPDX-License-Identifier: Apache-2.0 */
/* A few threads for one pass over a volume. Threads of our own rather than OpenMP's: those would
 * spin for a while behind each pass, and the thread sanitizer does not understand them. */
#include "base/parallel.h"

#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>

#include "base/error.h"

typedef struct part_thread {
    void (*work)(void *, unsigned);
    void *context;
    unsigned part;
    bool started;
    pthread_t thread;
} part_thread;

static void *run_part(void *argument)
{
    part_thread *t = argument;
    t->work(t->context, t->part);
    return NULL;
}

void parallel_run(unsigned parts, void (*work)(void *context, unsigned part), void *context)
{
    sigset_t all, before;
    part_thread *threads = array_zero(parts, sizeof *threads);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (unsigned i = 1; threads && i < parts; i++) {
        threads[i] = (part_thread){.work = work, .context = context, .part = i};
        threads[i].started = pthread_create(&threads[i].thread, NULL, run_part, &threads[i]) == 0;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    for (unsigned i = 0; i < parts; i++)
        if (!threads || !threads[i].started)
            work(context, i);
    for (unsigned i = 1; threads && i < parts; i++)
        if (threads[i].started)
            pthread_join(threads[i].thread, NULL);
    free(threads);
}
