/* SPDX-License-Identifier: Apache-2.0 */
/* Predictors and predictions. */
#include <cmath>

#include "binding/detached.h"
#include "binding/words.h"

namespace binding
{

static const word<dm_blend> blend_words[] = {{"gaussian", DM_BLEND_GAUSSIAN},
                                             {"constant", DM_BLEND_CONSTANT}};
static const word<size_t> tile_words[] = {{"whole", DM_TILE_WHOLE}, {"auto", DM_TILE_AUTO}};

using tile_argument = std::optional<std::variant<tile_sizes, std::string>>;

static void set_tile(dm_predict_options *options, const tile_argument &tile)
{
    if (!tile)
        return;
    for (size_t i = 0; i < 3; i++)
        options->tile[i] = std::holds_alternative<std::string>(*tile)
                               ? chosen(tile_words, std::get<std::string>(*tile), "tile")
                               : std::get<tile_sizes>(*tile)[i];
}

struct prediction {
    std::shared_ptr<const dm_prediction> c;
    size_t n_thresholds;

    volume dose() const
    {
        return {std::shared_ptr<const dm_volume>(c, dm_prediction_dose(c.get()))};
    }
    std::optional<dvh> histograms() const
    {
        const dm_dvh *d = dm_prediction_dvh(c.get());
        return d ? std::make_optional(dvh{std::shared_ptr<const dm_dvh>(c, d), n_thresholds})
                 : std::nullopt;
    }
};

/* A model made ready. One thread after the other may use it: they wait for their turn. */
class predictor
{
  public:
    predictor(const model &source, dm_predict_options options,
              const std::vector<double> &thresholds, const std::optional<std::string> &device)
        : of(source.c), n_thresholds(thresholds.size())
    {
        options.device = device ? c_string(*device, "the device") : nullptr;
        options.v_thresholds = thresholds.data();
        options.n_v_thresholds = thresholds.size();
        options.progress = report_of_run;
        options.progress_user = this;
        progress making;
        current = &making;
        run_detached(
            [&](dm_error *err) { return dm_predictor_create(of.get(), &options, c.put(), err); },
            making, std::nullopt);
        current = nullptr;
    }
    ~predictor()
    {
        /* What a fork left half done is not touched. */
        if (mine.is_lost())
            c.leave();
    }
    predictor(const predictor &) = delete;
    predictor &operator=(const predictor &) = delete;

    prediction run(const dm_patient &patient, const progress_callback &callback)
    {
        made<dm_prediction, dm_prediction_free> result;
        struct holder {
            turn &held;
            explicit holder(turn &t) : held(t)
            {
                held.take();
            }
            ~holder()
            {
                held.release();
            }
        } hold(mine);
        progress report;
        current = &report;
        run_detached(
            [&](dm_error *err) { return dm_predictor_run(c.get(), &patient, result.put(), err); },
            report, callback);
        return {result.share(), n_thresholds};
    }

  private:
    /* The library is told once whom to report to. */
    static int report_of_run(void *user, double share, const char *stage)
    {
        return progress::report(static_cast<predictor *>(user)->current, share, stage);
    }

    std::shared_ptr<const dm_model> of;
    size_t n_thresholds;
    made<dm_predictor, dm_predictor_free> c;
    turn mine;
    progress *current = nullptr; /* of the run that is going on */
};

static prediction predictor_run(predictor &p, const volume &pet, const pet_info *info,
                                const volume *ct, const ct_info *onto_pet, const labels *structures,
                                double activity_gbq, const progress_callback &callback)
{
    /* To the library 0 is none. */
    if (activity_gbq == 0)
        raise_value("therapy activity 0 GBq is out of range", "give --activity in GBq, above 0");
    dm_patient patient = {};
    patient.pet = pet.c.get();
    patient.info = info ? &info->c : nullptr;
    patient.ct = ct ? ct->c.get() : nullptr;
    patient.ct_info = onto_pet ? &onto_pet->c : nullptr;
    patient.labels = structures ? structures->c.get() : nullptr;
    patient.activity_gbq = std::isnan(activity_gbq) ? 0 : activity_gbq;
    return p.run(patient, callback);
}

static void bind_predictor_class(nb::module_ &m)
{
    if (is_bound<predictor>(m, "Predictor"))
        return;
    nb::class_<predictor>(m, "Predictor", "A model made ready on a device, for many PETs.")
        .def(
            "__init__",
            [](predictor *self, const model &source, const tile_argument &tile, bool force_tile,
               double overlap, size_t memory_bytes, const std::string &blend, double skip_air,
               const std::string &precision, const std::optional<std::string> &device,
               unsigned threads, unsigned batch, const std::string &convolutions, bool nan_to_zero,
               const std::vector<double> &v_thresholds, bool network_values) {
                dm_predict_options options;
                dm_predict_options_init(&options);
                set_tile(&options, tile);
                options.force_tile = force_tile;
                options.overlap = overlap;
                options.memory_bytes = memory_bytes;
                options.blend = chosen(blend_words, blend, "blend");
                options.skip_air = skip_air;
                options.precision = chosen(precision_words, precision, "precision");
                options.threads = threads;
                options.batch = batch;
                options.convolutions = chosen(convolutions_words, convolutions, "convolutions");
                options.nan_to_zero = nan_to_zero;
                options.network_values = network_values;
                new (self) predictor(source, options, v_thresholds, device);
            },
            nb::arg("model"), nb::kw_only(), nb::arg("tile") = nb::none(),
            nb::arg("force_tile") = false, nb::arg("overlap") = NAN, nb::arg("memory_bytes") = 0,
            nb::arg("blend") = "gaussian", nb::arg("skip_air") = NAN, nb::arg("precision") = "auto",
            nb::arg("device") = nb::none(), nb::arg("threads") = 0, nb::arg("batch") = 0,
            nb::arg("convolutions") = "auto", nb::arg("nan_to_zero") = false,
            nb::arg("v_thresholds") = std::vector<double>(), nb::arg("network_values") = false)
        .def("run", predictor_run, nb::arg("pet"), nb::arg("info").none() = nb::none(),
             nb::arg("ct").none() = nb::none(), nb::arg("ct_info").none() = nb::none(),
             nb::arg("labels").none() = nb::none(), nb::arg("activity_gbq") = NAN,
             nb::arg("progress") = nb::none(),
             "Waits for its turn where other threads use the predictor.");
}

static void prediction_write(const prediction &p, const path &name,
                             const std::optional<path> &pet_path,
                             const std::optional<path> &ct_path,
                             const std::optional<path> &labels_path,
                             const std::optional<std::string> &command_line, unsigned threads)
{
    std::string file = name.bytes();
    std::string pet = pet_path ? pet_path->bytes() : "";
    std::string ct = ct_path ? ct_path->bytes() : "";
    std::string structures = labels_path ? labels_path->bytes() : "";
    dm_sources sources = {};
    sources.pet_path = pet_path ? pet.c_str() : nullptr;
    sources.ct_path = ct_path ? ct.c_str() : nullptr;
    sources.labels_path = labels_path ? structures.c_str() : nullptr;
    sources.command_line = command_line ? c_string(*command_line, "the command line") : nullptr;
    run_detached([&](dm_error *err) {
        return dm_prediction_write(p.c.get(), file.c_str(), &sources, threads, err);
    });
}

static bool prediction_is_complete(const path &name)
{
    std::string file = name.bytes();
    bool complete = false;
    run_detached([&](dm_error *) {
        complete = dm_prediction_is_complete(file.c_str());
        return DM_OK;
    });
    return complete;
}

static std::tuple<nb::str, nb::str, nb::str, nb::str> output_paths(const path &name)
{
    std::string file = name.bytes();
    auto paths = std::make_unique<dm_output_paths>();
    dm_error error = {};
    if (dm_output_paths_from(file.c_str(), paths.get(), &error) != DM_OK)
        raise(error);
    return {text(paths->dose), text(paths->sidecar), text(paths->dvh), text(paths->organs)};
}

static void bind_prediction(nb::module_ &m)
{
    if (is_bound<prediction>(m, "Prediction"))
        return;
    nb::class_<prediction>(m, "Prediction", "A dose map with what belongs to it.")
        .def_prop_ro("dose", &prediction::dose)
        .def_prop_ro("dvh", &prediction::histograms)
        .def_prop_ro(
            "provenance_json",
            [](const prediction &p) { return text(dm_prediction_provenance_json(p.c.get())); })
        .def("write", prediction_write, nb::arg("path"), nb::arg("pet_path") = nb::none(),
             nb::arg("ct_path") = nb::none(), nb::arg("labels_path") = nb::none(),
             nb::arg("command_line") = nb::none(), nb::arg("threads") = 0,
             "The files of output_paths.");
}

void bind_predictor(nb::module_ &m)
{
    bind_prediction(m);
    bind_predictor_class(m);
    m.def("prediction_is_complete", prediction_is_complete, nb::arg("path"));
    m.def("output_paths", output_paths, nb::arg("path"),
          "Dose map, sidecar, DVH and organ table of a dose map's path.");
}

} // namespace binding
