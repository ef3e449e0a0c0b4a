/* SPDX-License-Identifier: Apache-2.0 */
/* Dose-volume histograms. */
#include "binding/detached.h"

namespace binding
{

/* One of a DVH's, which it keeps. */
struct structure {
    std::shared_ptr<const dm_structure_dose> c;
    size_t n_thresholds;
};

static dvh dvh_compute(const volume &dose, const labels &structures,
                       const std::vector<double> &thresholds, bool per_activity, unsigned threads)
{
    dm_dvh_options options = {};
    options.v_thresholds = thresholds.data();
    options.n_v_thresholds = thresholds.size();
    options.per_activity = per_activity;
    options.threads = threads;
    made<dm_dvh, dm_dvh_free> computed;
    run_detached([&](dm_error *err) {
        return dm_dvh_compute(dose.c.get(), structures.c.get(), &options, computed.put(), err);
    });
    return {computed.share(), thresholds.size()};
}

static structure dvh_structure(const dvh &d, size_t index)
{
    const dm_structure_dose *found = dm_dvh_structure(d.c.get(), index);
    if (!found)
        throw nb::index_error("there is no such structure");
    return {std::shared_ptr<const dm_structure_dose>(d.c, found), d.n_thresholds};
}

static void bind_structure(nb::module_ &m)
{
    if (is_bound<structure>(m, "Structure"))
        return;
    nb::class_<structure> c(m, "Structure", "Dose and volume of one structure; NaN is undefined.");
    auto number = [&c](const char *name, double dm_structure_dose::*field) {
        c.def_prop_ro(name, [field](const structure &s) { return s.c.get()->*field; });
    };
    c.def_prop_ro("name", [](const structure &s) { return text(s.c->name); });
    c.def_prop_ro("id", [](const structure &s) { return s.c->id; });
    c.def_prop_ro("voxels", [](const structure &s) { return s.c->voxels; });
    number("volume_cm3", &dm_structure_dose::volume_cm3);
    number("mean", &dm_structure_dose::mean);
    number("minimum", &dm_structure_dose::minimum);
    number("maximum", &dm_structure_dose::maximum);
    number("d2", &dm_structure_dose::d2);
    number("d50", &dm_structure_dose::d50);
    number("d95", &dm_structure_dose::d95);
    number("d98", &dm_structure_dose::d98);
    number("d2cc", &dm_structure_dose::d2cc);
    number("bin_width", &dm_structure_dose::bin_width);
    c.def_prop_ro("v_percent", [](const structure &s) {
        const double *first = s.c->v_percent;
        return first ? std::vector<double>(first, first + s.n_thresholds) : std::vector<double>();
    });
    c.def_prop_ro(
        "histogram",
        [](nb::pointer_and_handle<structure> self) {
            const dm_structure_dose *s = self.p->c.get();
            return nb::ndarray<nb::array_api, const uint64_t, nb::ndim<1>>(s->histogram, 1,
                                                                           &s->bins, self.h);
        },
        "Voxels in each dose bin, not copied, as a buffer that NumPy takes.");
}

void bind_dvh(nb::module_ &m)
{
    bind_structure(m);
    if (is_bound<dvh>(m, "Dvh"))
        return;
    nb::class_<dvh>(m, "Dvh", "Dose-volume histograms of structures.")
        .def_static("compute", dvh_compute, nb::arg("dose"), nb::arg("labels"),
                    nb::arg("v_thresholds") = std::vector<double>(),
                    nb::arg("per_activity") = false, nb::arg("threads") = 0)
        .def("__len__", [](const dvh &d) { return dm_dvh_count(d.c.get()); })
        .def("structure", dvh_structure, nb::arg("index"))
        .def(
            "write_organs",
            [](const dvh &d, const path &name) {
                std::string file = name.bytes();
                run_detached([&](dm_error *err) {
                    return dm_dvh_write_organs(d.c.get(), file.c_str(), err);
                });
            },
            nb::arg("path"))
        .def(
            "write_curves",
            [](const dvh &d, const path &name) {
                std::string file = name.bytes();
                run_detached([&](dm_error *err) {
                    return dm_dvh_write_curves(d.c.get(), file.c_str(), err);
                });
            },
            nb::arg("path"));
}

} // namespace binding
