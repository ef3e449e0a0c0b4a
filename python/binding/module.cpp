/* SPDX-License-Identifier: Apache-2.0 */
/* The module dosemap._core. */
#include "binding/detached.h"

namespace binding
{

static nb::str default_model_path()
{
    char path[4096];
    dm_error error = {};
    if (dm_default_model_path(path, sizeof path, &error) != DM_OK)
        raise(error);
    return text(path);
}

static nb::str doctor_json()
{
    return text_detached([](char **made, dm_error *err) { return dm_doctor(true, made, err); });
}

} // namespace binding

NB_MODULE(_core, m)
{
    using namespace binding;

    /* nanobind keeps what it knows of Python in one place. */
    static auto *of_first = nb::detail::internals;
    if (PyInterpreterState_GetID(PyInterpreterState_Get()) != 0) {
        nb::detail::internals = of_first;
        throw nb::import_error("dosemap cannot be used in a subinterpreter");
    }
    m.doc() = "dosemap.h for the package; no interface of its own.";
    static std::once_flag once;
    std::call_once(once, watch_process);
    /* A program that ends with objects in hand is no fault; the tests want to know of ours. */
    nb::set_leak_warnings(false);
    m.def(
        "report_leaks", [] { nb::set_leak_warnings(true); },
        "At the end of the process, name the objects that are left.");
    m.def("set_error_factory", set_error_factory, nb::arg("factory"),
          "What makes an exception of status, where, what and remedy.");
    m.def("version", [] { return dm_version(); });
    m.def("default_model_path", default_model_path);
    m.def("doctor_json", doctor_json, "What this installation has, as `dosemap doctor` says it.");
    bind_volume(m);
    bind_labels(m);
    bind_pet_ct(m);
    bind_dvh(m);
    bind_model(m);
    bind_predictor(m);
}
