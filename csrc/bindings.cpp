// Python bindings: raw addresses and sizes in, nothing out. The Python wrappers in kernels/ check
// devices, dtypes, shapes and contiguity; what can still be checked here is.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cerrno>
#include <system_error>

#include "adam_step.h"
#include "adjoint_matching.h"
#include "mlp.h"
#include "path_kl.h"
#include "read_windows.h"

namespace py = pybind11;

namespace {

template <typename T>
T* pointer(uintptr_t address, const char* name) {
    if (address == 0) throw std::invalid_argument(std::string(name) + " is a null address");
    return reinterpret_cast<T*>(address);
}

trqam::Shape checked(int64_t runs, int64_t steps, int64_t batch, int64_t dim, int64_t horizon) {
    const trqam::Shape shape{runs, steps, batch, dim};
    trqam::check_shape(shape);
    if (horizon < 1) {
        throw std::invalid_argument("horizon is " + std::to_string(horizon) +
                                    "; it must be at least 1");
    }
    return shape;
}

// On the CPU `queue` is the number of threads, on CUDA the address of the stream.
template <typename T>
void path_kl_forward(bool cuda, uintptr_t velocity, uintptr_t base_velocity,
                     uintptr_t per_trajectory, uintptr_t mean, int64_t runs, int64_t steps,
                     int64_t batch, int64_t dim, int64_t horizon, uintptr_t queue) {
    const trqam::Shape shape = checked(runs, steps, batch, dim, horizon);
    const T* v = pointer<const T>(velocity, "velocity");
    const T* base = pointer<const T>(base_velocity, "base_velocity");
    T* rows = pointer<T>(per_trajectory, "per_trajectory");
    T* out = pointer<T>(mean, "mean");
    py::gil_scoped_release release;
    if (!cuda) {
        trqam::path_kl_forward(v, base, rows, out, shape, horizon, static_cast<int>(queue));
        return;
    }
#ifdef TRQAM_WITH_CUDA
    trqam::path_kl_forward_cuda(v, base, rows, out, shape, horizon,
                                reinterpret_cast<void*>(queue));
#else
    throw std::runtime_error("trqam_fast._C was built without CUDA");
#endif
}

template <typename T>
void path_kl_backward(bool cuda, uintptr_t velocity, uintptr_t base_velocity,
                      uintptr_t grad_per_trajectory, uintptr_t grad_velocity, int64_t runs,
                      int64_t steps, int64_t batch, int64_t dim, int64_t horizon,
                      uintptr_t queue) {
    const trqam::Shape shape = checked(runs, steps, batch, dim, horizon);
    const T* v = pointer<const T>(velocity, "velocity");
    const T* base = pointer<const T>(base_velocity, "base_velocity");
    const T* upstream = pointer<const T>(grad_per_trajectory, "grad_per_trajectory");
    T* grad = pointer<T>(grad_velocity, "grad_velocity");
    py::gil_scoped_release release;
    if (!cuda) {
        trqam::path_kl_backward(v, base, upstream, grad, shape, horizon,
                                static_cast<int>(queue));
        return;
    }
#ifdef TRQAM_WITH_CUDA
    trqam::path_kl_backward_cuda(v, base, upstream, grad, shape, horizon,
                                 reinterpret_cast<void*>(queue));
#else
    throw std::runtime_error("trqam_fast._C was built without CUDA");
#endif
}

template <typename T>
void adjoint_matching_forward(bool cuda, uintptr_t velocity, uintptr_t base_velocity,
                              uintptr_t adjoint, uintptr_t lam, uintptr_t scratch, uintptr_t loss,
                              uintptr_t path_kl, uintptr_t grad_velocity, int64_t runs,
                              int64_t steps, int64_t batch, int64_t dim, int64_t horizon,
                              uintptr_t queue) {
    const trqam::Shape shape = checked(runs, steps, batch, dim, horizon);
    const T* v = pointer<const T>(velocity, "velocity");
    const T* base = pointer<const T>(base_velocity, "base_velocity");
    const T* a = pointer<const T>(adjoint, "adjoint");
    const T* lam_values = pointer<const T>(lam, "lam");
    double* sums = pointer<double>(scratch, "scratch");
    T* loss_out = pointer<T>(loss, "loss");
    T* kl_out = pointer<T>(path_kl, "path_kl");
    T* grad = reinterpret_cast<T*>(grad_velocity);
    py::gil_scoped_release release;
    if (!cuda) {
        trqam::adjoint_matching_forward(v, base, a, lam_values, sums, loss_out, kl_out, grad,
                                        shape, horizon, static_cast<int>(queue));
        return;
    }
#ifdef TRQAM_WITH_CUDA
    trqam::adjoint_matching_forward_cuda(v, base, a, lam_values, sums, loss_out, kl_out, grad,
                                         shape, horizon, reinterpret_cast<void*>(queue));
#else
    throw std::runtime_error("trqam_fast._C was built without CUDA");
#endif
}

// A stack of networks as a list: runs, members, hidden layers, norm, the widths from input to
// output, then address, run stride and member stride of every kernel, bias, scale and shift.
template <typename T>
trqam::Network<T> network(const std::vector<int64_t>& numbers, const char* name) {
    size_t next = 0;
    const auto take = [&] {
        if (next == numbers.size()) {
            throw std::invalid_argument(std::string(name) + " is too short a description");
        }
        return numbers[next++];
    };
    trqam::Network<T> result{};
    result.runs = take();
    result.members = take();
    result.layers = take();
    result.norm = take() != 0;
    if (result.layers < 1 || result.layers > trqam::kMaxLayers) {
        throw std::invalid_argument(std::string(name) + " has " + std::to_string(result.layers) +
                                    " hidden layers; 1 to " +
                                    std::to_string(trqam::kMaxLayers) + " are possible");
    }
    for (int64_t l = 0; l < result.layers + 2; ++l) result.widths[l] = take();
    const auto fill = [&](trqam::Strided<T>* tensors, int64_t count) {
        for (int64_t i = 0; i < count; ++i) {
            tensors[i].data = pointer<T>(static_cast<uintptr_t>(take()), name);
            tensors[i].run_stride = take();
            tensors[i].member_stride = take();
        }
    };
    fill(result.kernels, result.layers + 1);
    fill(result.biases, result.layers + 1);
    if (result.norm) {
        fill(result.scales, result.layers);
        fill(result.shifts, result.layers);
    }
    return result;
}

// How a pass runs: instruction set ("" for the best), bfloat16 operands, threads, scratch memory.
struct How {
    How(const std::string& set, bool bf16, int threads, uintptr_t scratch, int64_t bytes)
        : set(set), operands(bf16 ? trqam::Operands::bf16 : trqam::Operands::exact),
          workspace{reinterpret_cast<char*>(scratch), bytes, threads < 1 ? 1 : threads} {}
    std::string set;
    trqam::Operands operands;
    trqam::Workspace workspace;

    template <typename T>
    const trqam::Passes<T>& passes() const {
        return trqam::passes<T>(set.empty() ? nullptr : set.c_str(), operands);
    }
};

using Numbers = std::vector<int64_t>;

template <typename T>
T* optional(uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

template <typename T>
int64_t mlp_forward(const Numbers& weights, uintptr_t inputs, int64_t rows, uintptr_t out,
                    uintptr_t tape, const How& how) {
    const trqam::MlpForward<T> call{network<T>(weights, "weights"), optional<const T>(inputs),
                                    rows, optional<T>(out), optional<T>(tape)};
    const auto& passes = how.passes<T>();
    py::gil_scoped_release release;
    return passes.forward(call, how.workspace);
}

template <typename T>
int64_t mlp_backward(const Numbers& weights, const Numbers& gradients, uintptr_t inputs,
                     uintptr_t cotangent, uintptr_t tape, int64_t rows, uintptr_t d_inputs,
                     const How& how) {
    const bool want_weights = !gradients.empty();
    const trqam::MlpBackward<T> call{
        network<T>(weights, "weights"),
        want_weights ? network<T>(gradients, "gradients") : trqam::Network<T>{},
        optional<const T>(inputs), optional<const T>(cotangent), optional<T>(tape), rows,
        want_weights, optional<T>(d_inputs)};
    const auto& passes = how.passes<T>();
    py::gil_scoped_release release;
    return passes.backward(call, how.workspace);
}

template <typename T>
int64_t sde_rollout(const Numbers& velocity, const Numbers& base, int64_t batch,
                    int64_t ode_batch, int64_t observation, int64_t action, int64_t steps,
                    uintptr_t observations, uintptr_t x0, uintptr_t noise,
                    uintptr_t ode_observations, uintptr_t ode_x0, uintptr_t trajectory,
                    uintptr_t velocities, uintptr_t ode_x, uintptr_t tape, const How& how) {
    const trqam::Rollout<T> call{network<T>(velocity, "velocity"),
                                 network<T>(base, "base_velocity"),
                                 {batch, observation, action, steps},
                                 ode_batch,
                                 optional<const T>(observations),
                                 optional<const T>(x0),
                                 optional<const T>(noise),
                                 optional<const T>(ode_observations),
                                 optional<const T>(ode_x0),
                                 optional<T>(trajectory),
                                 optional<T>(velocities),
                                 optional<T>(ode_x),
                                 optional<T>(tape)};
    const auto& passes = how.passes<T>();
    py::gil_scoped_release release;
    return passes.rollout(call, how.workspace);
}

template <typename T>
int64_t lean_adjoint(const Numbers& base, int64_t batch, int64_t observation, int64_t action,
                     int64_t steps, uintptr_t observations, uintptr_t trajectory,
                     uintptr_t terminal, uintptr_t adjoints, const How& how) {
    const trqam::Sweep<T> call{network<T>(base, "base_velocity"),
                               {batch, observation, action, steps},
                               optional<const T>(observations), optional<const T>(trajectory),
                               optional<const T>(terminal), optional<T>(adjoints)};
    const auto& passes = how.passes<T>();
    py::gil_scoped_release release;
    return passes.sweep(call, how.workspace);
}

template <typename T>
int64_t velocity_along(const Numbers& velocity, int64_t batch, int64_t observation,
                       int64_t action, int64_t steps, uintptr_t observations, uintptr_t points,
                       int64_t point_stride, uintptr_t velocities, const How& how) {
    const trqam::Along<T> call{network<T>(velocity, "velocity"),
                               {batch, observation, action, steps},
                               optional<const T>(observations), optional<const T>(points),
                               point_stride, optional<T>(velocities)};
    const auto& passes = how.passes<T>();
    py::gil_scoped_release release;
    return passes.along(call, how.workspace);
}

template <typename T>
void adam_step(uintptr_t params, uintptr_t gradient, uintptr_t exp_avg, uintptr_t exp_avg_sq,
               uintptr_t targets, uintptr_t norms, uintptr_t sums, int64_t runs, int64_t size,
               int64_t target_size, double step, double lr, double beta1, double beta2, double eps,
               double max_norm, double tau, int threads) {
    const trqam::AdamStep<T> call{pointer<T>(params, "params"),
                                  pointer<const T>(gradient, "gradient"),
                                  pointer<T>(exp_avg, "exp_avg"),
                                  pointer<T>(exp_avg_sq, "exp_avg_sq"),
                                  optional<T>(targets),
                                  pointer<T>(norms, "norms"),
                                  pointer<double>(sums, "sums"),
                                  runs, size, target_size, step, lr, beta1, beta2, eps, max_norm,
                                  tau};
    py::gil_scoped_release release;
    trqam::adam_step(call, threads);
}

template <typename T>
void define_passes(py::module_& module, const std::string& precision) {
    module.def(("mlp_forward_" + precision).c_str(), &mlp_forward<T>);
    module.def(("mlp_backward_" + precision).c_str(), &mlp_backward<T>);
    module.def(("sde_rollout_" + precision).c_str(), &sde_rollout<T>);
    module.def(("lean_adjoint_" + precision).c_str(), &lean_adjoint<T>);
    module.def(("velocity_along_" + precision).c_str(), &velocity_along<T>);
}

bool read_windows(int descriptor, int64_t first, uintptr_t mapped, int64_t inside,
                  uintptr_t starts, int64_t count, int64_t stride, int64_t size, uintptr_t out) {
    if (count == 0) return true;
    const char* memory = inside > 0 ? pointer<const char>(mapped, "mapped") : nullptr;
    const int64_t* from = pointer<const int64_t>(starts, "starts");
    char* to = pointer<char>(out, "out");
    try {
        py::gil_scoped_release release;
        return trqam::read_windows(descriptor, first, memory, inside, from, count, stride, size,
                                   to);
    } catch (const std::system_error& error) {
        errno = error.code().value();
        PyErr_SetFromErrno(PyExc_OSError);
        throw py::error_already_set();
    }
}

}  // namespace

PYBIND11_MODULE(_C, module) {
    module.doc() = "C++ and CUDA code of trqam_fast";
#ifdef TRQAM_WITH_CUDA
    module.attr("with_cuda") = true;
#else
    module.attr("with_cuda") = false;
#endif
    module.def("path_kl_forward_float32", &path_kl_forward<float>);
    module.def("path_kl_forward_float64", &path_kl_forward<double>);
    module.def("path_kl_backward_float32", &path_kl_backward<float>);
    module.def("path_kl_backward_float64", &path_kl_backward<double>);
    module.def("adjoint_matching_forward_float32", &adjoint_matching_forward<float>);
    module.def("adjoint_matching_forward_float64", &adjoint_matching_forward<double>);
    module.def("adam_blocks", &trqam::adam_blocks);
    module.def("adam_step_float32", &adam_step<float>);
    module.def("adam_step_float64", &adam_step<double>);
    module.def("read_windows", &read_windows);
    module.attr("max_layers") = trqam::kMaxLayers;
    module.def("instruction_sets", [] {
        const char* names[4];
        const int count = trqam::instruction_sets(names);
        return std::vector<std::string>(names, names + count);
    });
    py::class_<How>(module, "How").def(
        py::init<const std::string&, bool, int, uintptr_t, int64_t>());
    define_passes<float>(module, "float32");
    define_passes<double>(module, "float64");
}
