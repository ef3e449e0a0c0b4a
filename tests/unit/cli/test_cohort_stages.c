/* SPDX-License-Identifier: Apache-2.0 */
/* The order of a cohort's stages. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#include <cmocka.h>

#include "cli/cohort.h"

enum { PETS = 6 };

typedef struct record {
    pthread_mutex_t lock;
    size_t announced, read_again;
    bool early; /* something was read again that was still to be announced */
} record;

static void nothing(void *context, size_t index)
{
    (void)context;
    (void)index;
}

static bool always(void *context, size_t index)
{
    (void)context;
    (void)index;
    return true;
}

/* Every second PET did not fit when it was read. */
static bool even(void *context, size_t index)
{
    (void)context;
    return index % 2 == 0;
}

static void announce_slowly(void *context, size_t index)
{
    const struct timespec pause = {.tv_nsec = 20000000};
    record *r = context;
    nanosleep(&pause, NULL);
    pthread_mutex_lock(&r->lock);
    r->announced = index + 1;
    pthread_mutex_unlock(&r->lock);
}

static void read_again(void *context, size_t index)
{
    record *r = context;
    pthread_mutex_lock(&r->lock);
    r->early |= r->announced <= index;
    r->read_again++;
    pthread_mutex_unlock(&r->lock);
}

/* Reading again replaces what is being announced. */
static void test_announced_before_it_is_read_again(void **state)
{
    (void)state;
    record r = {.lock = PTHREAD_MUTEX_INITIALIZER};
    const cohort c = {.count = PETS,
                      .context = &r,
                      .read = nothing,
                      .can_read_ahead = always,
                      .has_room = even,
                      .read_again = read_again,
                      .predict = nothing,
                      .announce = announce_slowly,
                      .write = nothing};
    cohort_run(&c);
    assert_int_equal(r.read_again, PETS / 2);
    assert_false(r.early);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_announced_before_it_is_read_again)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
