/* SPDX-License-Identifier: Apache-2.0 */
/* Plans of graphs made by hand, with what they may do in few words. Include after cmocka.h. */
#ifndef DOSEMAP_TESTS_PLAN_CASE_H
#define DOSEMAP_TESTS_PLAN_CASE_H

#include "graph_builder.h"
#include "model/plan.h"

typedef struct plan_case {
    element_type type;
    bool reads, writes, plain;
    size_t output;
} plan_case;

static inline dm_status try_build(const graph_builder *b, const size_t tile[3], plan_case c,
                                  plan **p, dm_error *err)
{
    plan_options options = {.type = c.type,
                            .conv_reads_views = c.reads,
                            .conv_writes_views = c.writes,
                            .optimise = !c.plain,
                            .output = c.output};
    memcpy(options.tile, tile, sizeof options.tile);
    return plan_build(&b->g, &options, p, err);
}

static inline plan *build(const graph_builder *b, plan_case c)
{
    plan *p = NULL;
    dm_error err = {0};
    if (try_build(b, b->sizes[b->input], c, &p, &err) != DM_OK)
        fail_msg("%s", err.what);
    return p;
}

#endif
