/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/cohort.h"

#include <pthread.h>
#include <signal.h>

/* Counts of PETs, each raised by one thread. */
typedef struct progress {
    const cohort *cohort;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    size_t read, announced, started, predicted, written;
    bool alone; /* the PET that is predicted has no room for others beside it */
} progress;

static void raise_count(progress *p, size_t *count)
{
    pthread_mutex_lock(&p->lock);
    ++*count;
    pthread_cond_broadcast(&p->changed);
    pthread_mutex_unlock(&p->lock);
}

static void wait_for(progress *p, const size_t *count, size_t value)
{
    pthread_mutex_lock(&p->lock);
    while (*count < value)
        pthread_cond_wait(&p->changed, &p->lock);
    pthread_mutex_unlock(&p->lock);
}

static void *read_all(void *argument)
{
    progress *p = argument;
    const cohort *c = p->cohort;
    for (size_t i = 0; i < c->count; i++) {
        bool ahead = c->can_read_ahead(c->context, i);
        pthread_mutex_lock(&p->lock);
        while (p->written < i && (!ahead || p->started < i || p->alone))
            pthread_cond_wait(&p->changed, &p->lock);
        pthread_mutex_unlock(&p->lock);
        c->read(c->context, i);
        raise_count(p, &p->read);
    }
    return NULL;
}

/* Starts PET i: with the last one's outputs being written, or, alone, when they are. Reading it again
 * waits until what the first reading left to be announced is no longer in use. */
static void start(progress *p, size_t i)
{
    const cohort *c = p->cohort;
    bool alone = !c->has_room(c->context, i);
    wait_for(p, &p->written, alone || i == 0 ? i : i - 1);
    if (alone) {
        wait_for(p, &p->announced, i + 1);
        c->read_again(c->context, i);
    }
    pthread_mutex_lock(&p->lock);
    p->alone = alone;
    p->started = i + 1;
    pthread_cond_broadcast(&p->changed);
    pthread_mutex_unlock(&p->lock);
}

static void *predict_all(void *argument)
{
    progress *p = argument;
    const cohort *c = p->cohort;
    for (size_t i = 0; i < c->count; i++) {
        wait_for(p, &p->read, i + 1);
        start(p, i);
        c->predict(c->context, i);
        raise_count(p, &p->predicted);
    }
    return NULL;
}

static void one_after_the_other(const cohort *c)
{
    for (size_t i = 0; i < c->count; i++) {
        c->read(c->context, i);
        c->announce(c->context, i);
        c->predict(c->context, i);
        c->write(c->context, i);
    }
}

/* Signals stay with the calling thread, whose files they may interrupt. */
static unsigned start_threads(progress *p, pthread_t threads[2])
{
    sigset_t all, before;
    unsigned started = 0;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    if (pthread_create(&threads[0], NULL, predict_all, p) == 0)
        started++;
    if (started == 1 && pthread_create(&threads[1], NULL, read_all, p) == 0)
        started++;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return started;
}

void cohort_run(const cohort *c)
{
    progress p = {.cohort = c};
    pthread_t threads[2];
    if (c->count < 2) {
        one_after_the_other(c);
        return;
    }
    pthread_mutex_init(&p.lock, NULL);
    pthread_cond_init(&p.changed, NULL);
    unsigned started = start_threads(&p, threads);
    for (size_t i = 0; started > 0 && i < c->count; i++) {
        if (started == 1) {
            c->read(c->context, i);
            raise_count(&p, &p.read);
        }
        wait_for(&p, &p.read, i + 1);
        c->announce(c->context, i);
        raise_count(&p, &p.announced);
        wait_for(&p, &p.predicted, i + 1);
        c->write(c->context, i);
        raise_count(&p, &p.written);
    }
    for (unsigned i = 0; i < started; i++)
        pthread_join(threads[i], NULL);
    pthread_cond_destroy(&p.changed);
    pthread_mutex_destroy(&p.lock);
    if (started == 0)
        one_after_the_other(c);
}
