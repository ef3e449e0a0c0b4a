/* SPDX-License-Identifier: Apache-2.0 */
/* Models: what is in a weights file, and the network alone. */
#include "binding/detached.h"
#include "binding/words.h"

namespace binding
{

const word<dm_precision> precision_words[5] = {{"auto", DM_PRECISION_AUTO},
                                               {"float32", DM_PRECISION_FLOAT32},
                                               {"tf32", DM_PRECISION_TF32},
                                               {"bf16", DM_PRECISION_BF16},
                                               {"fp16", DM_PRECISION_FP16}};
const word<dm_convolutions> convolutions_words[3] = {{"auto", DM_CONVOLUTIONS_AUTO},
                                                     {"library", DM_CONVOLUTIONS_LIBRARY},
                                                     {"own", DM_CONVOLUTIONS_OWN}};
static const word<dm_plan> plan_words[] = {{"cpu", DM_PLAN_CPU}, {"cuda", DM_PLAN_CUDA}};
static const word<dm_quantity> quantity_words[] = {
    {"unknown", DM_QUANTITY_UNKNOWN},
    {"uptake", DM_QUANTITY_UPTAKE},
    {"suv", DM_QUANTITY_SUV},
    {"hu", DM_QUANTITY_HU},
    {"dose_per_activity", DM_QUANTITY_DOSE_PER_ACTIVITY},
    {"other", DM_QUANTITY_OTHER}};

static model model_load(const path &name)
{
    std::string file = name.bytes();
    made<dm_model, dm_model_free> loaded;
    run_detached([&](dm_error *err) { return dm_model_load(file.c_str(), loaded.put(), err); });
    return {loaded.share()};
}

static nb::str model_describe(const model &m, const std::optional<tile_sizes> &tile,
                              const std::string &precision, bool as_json, const std::string &plan,
                              unsigned batch, size_t windows, const std::string &convolutions,
                              const std::optional<path> &device_properties)
{
    dm_describe_options options;
    dm_describe_options_init(&options);
    if (tile)
        for (size_t i = 0; i < 3; i++)
            options.tile[i] = (*tile)[i];
    options.precision = chosen(precision_words, precision, "precision");
    options.as_json = as_json;
    options.plan = chosen(plan_words, plan, "plan");
    options.batch = batch;
    options.windows = windows;
    options.convolutions = chosen(convolutions_words, convolutions, "convolutions");
    std::string properties = device_properties ? device_properties->bytes() : "";
    options.device_properties = device_properties ? properties.c_str() : nullptr;
    return text_detached([&](char **made, dm_error *err) {
        return dm_model_describe(m.c.get(), &options, made, err);
    });
}

static std::pair<bool, nb::str> model_compare(const model &a, const model &b, bool as_json)
{
    bool same = false;
    nb::str difference = text_detached([&](char **made, dm_error *err) {
        return dm_model_compare(a.c.get(), b.c.get(), as_json, &same, made, err);
    });
    return {same, difference};
}

/* ---- The network alone ---------------------------------------------------------------------- */

using patches_in = nb::ndarray<const float, nb::ndim<5>, nb::c_contig, nb::device::cpu>;
using patches_out = nb::ndarray<nb::array_api, const float, nb::ndim<5>, nb::c_contig>;

struct outputs {
    dm_patches *patches = nullptr;
    size_t n = 0;
    ~outputs()
    {
        dm_patches_free(patches, n);
    }
};

static std::vector<std::pair<nb::str, patches_out>> arrays_of(std::unique_ptr<outputs> made)
{
    const outputs *all = made.get();
    nb::capsule owner(made.release(), [](void *p) noexcept { delete static_cast<outputs *>(p); });
    std::vector<std::pair<nb::str, patches_out>> arrays;
    for (size_t i = 0; i < all->n; i++) {
        const dm_patches &p = all->patches[i];
        size_t shape[5] = {p.count, p.channels, p.size[0], p.size[1], p.size[2]};
        arrays.emplace_back(text(p.name), patches_out(p.data, 5, shape, owner));
    }
    return arrays;
}

static std::vector<std::pair<nb::str, patches_out>>
model_forward(const model &m, const std::vector<std::pair<std::string, patches_in>> &inputs,
              const std::string &precision, const std::optional<std::string> &device,
              unsigned threads, const std::string &convolutions, const progress_callback &callback)
{
    progress report;
    dm_forward_options options;
    dm_forward_options_init(&options);
    options.precision = chosen(precision_words, precision, "precision");
    options.device = device ? c_string(*device, "the device") : nullptr;
    options.threads = threads;
    options.convolutions = chosen(convolutions_words, convolutions, "convolutions");
    options.progress = progress::report;
    options.progress_user = &report;

    std::vector<dm_patches> patches;
    for (const auto &[name, array] : inputs) {
        check_aligned(array.data(), sizeof(float));
        /* Inputs are read only. */
        patches.push_back({c_string(name, "the name of an input"),
                           array.shape(0),
                           array.shape(1),
                           {array.shape(2), array.shape(3), array.shape(4)},
                           const_cast<float *>(array.data())});
    }
    auto made = std::make_unique<outputs>();
    run_detached(
        [&](dm_error *err) {
            return dm_model_forward(m.c.get(), patches.data(), patches.size(), &options,
                                    &made->patches, &made->n, err);
        },
        report, callback);
    return arrays_of(std::move(made));
}

void bind_model(nb::module_ &module)
{
    if (is_bound<model>(module, "Model"))
        return;
    nb::class_<model>(module, "Model", "A weights file in memory.")
        .def_static("load", model_load, nb::arg("path"))
        .def_prop_ro("name", [](const model &m) { return text(dm_model_name(m.c.get())); })
        .def_prop_ro("path", [](const model &m) { return text(dm_model_path(m.c.get())); })
        .def_prop_ro("card_json",
                     [](const model &m) { return text(dm_model_card_json(m.c.get())); })
        .def_prop_ro("graph_json",
                     [](const model &m) { return text(dm_model_graph_json(m.c.get())); })
        .def(
            "takes",
            [](const model &m, const std::string &quantity) {
                return dm_model_takes(m.c.get(), chosen(quantity_words, quantity, "quantity"));
            },
            nb::arg("quantity"))
        .def("describe", model_describe, nb::arg("tile") = nb::none(),
             nb::arg("precision") = "auto", nb::arg("as_json") = true, nb::arg("plan") = "cpu",
             nb::arg("batch") = 0, nb::arg("windows") = 0, nb::arg("convolutions") = "auto",
             nb::arg("device_properties") = nb::none())
        .def("compare", model_compare, nb::arg("other"), nb::arg("as_json") = true,
             "Whether both are alike, and what differs.")
        .def("forward", model_forward, nb::arg("inputs").noconvert(), nb::arg("precision") = "auto",
             nb::arg("device") = nb::none(), nb::arg("threads") = 0,
             nb::arg("convolutions") = "auto", nb::arg("progress") = nb::none(),
             "What the network makes of patches (count, channels, size), by name.");
}

} // namespace binding
