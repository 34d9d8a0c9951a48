// Python bindings. A call is a Python NamedTuple whose fields are those of a struct in csrc, in its
// order: addresses of arrays, sizes, numbers. The Python wrappers in kernels/ check devices,
// dtypes, shapes and contiguity, and answer for arrays that may be empty; names, all other
// addresses and the sizes of trajectories and networks are checked here.
//
// Longer than 400 lines, as no other file knows Python: what reads a call, then a function for each
// op, which names the fields of its struct.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cerrno>
#include <string>
#include <system_error>
#include <vector>

#include "adam_step.h"
#include "adjoint_matching.h"
#include "instruction_sets.h"
#include "path_kl.h"
#include "philox.h"
#include "read_windows.h"

namespace py = pybind11;

namespace {

template <typename T>
T* pointer(uintptr_t address, const char* name) {
    if (address == 0) throw std::invalid_argument(std::string(name) + " is a null address");
    return reinterpret_cast<T*>(address);
}

// Reads the fields of a NamedTuple one after another. Raises TypeError where a name is not the one
// expected, so that a struct and its NamedTuple cannot come apart.
class Fields {
  public:
    explicit Fields(py::handle call)
        : call_(call), names_(py::reinterpret_steal<py::tuple>(
                           PyObject_GetAttrString((PyObject*)Py_TYPE(call.ptr()), "_fields"))) {
        if (!names_ || !PyTuple_Check(call.ptr())) throw py::error_already_set();
    }

    int64_t integer(const char* name) { return checked(PyLong_AsLongLong(next(name))); }
    double real(const char* name) { return checked(PyFloat_AsDouble(next(name))); }
    bool flag(const char* name) { return next(name) == Py_True; }
    std::string text(const char* name) { return py::cast<std::string>(py::handle(next(name))); }

    // An array that may not be there: None, or empty.
    template <typename T>
    T* optional(const char* name) {
        PyObject* value = next(name);
        if (value == Py_None) return nullptr;
        return reinterpret_cast<T*>(checked(PyLong_AsVoidPtr(value)));
    }
    template <typename T>
    T* array(const char* name) {
        return pointer<T>(reinterpret_cast<uintptr_t>(optional<T>(name)), name);
    }

    trqam::Shape shape(const char* name) {
        const auto sizes = py::reinterpret_borrow<py::tuple>(next(name));
        if (sizes.size() != 4) throw std::invalid_argument(std::string(name) + " has not 4 axes");
        const trqam::Shape shape{sizes[0].cast<int64_t>(), sizes[1].cast<int64_t>(),
                                 sizes[2].cast<int64_t>(), sizes[3].cast<int64_t>()};
        trqam::check_shape(shape);
        return shape;
    }
    // A schedule [2, steps]: step sizes, squared diffusion coefficients.
    trqam::NoiseSchedule schedule(const char* name, const trqam::Shape& shape) {
        const double* table = array<const double>(name);
        return {table, table + shape.steps};
    }
    int64_t positive(const char* name) {
        const int64_t value = integer(name);
        trqam::check_positive(value, name);
        return value;
    }

    // A stack of MLPs as a list: runs, members, hidden layers, norm, the widths from input to
    // output, then address, run stride and member stride of every kernel, bias, scale and shift.
    // None where the stack may be missing.
    template <typename T>
    trqam::MlpWeights<T> weights(const char* name) {
        const py::handle value = next(name);
        trqam::MlpWeights<T> result{};
        if (value.is_none()) return result;
        const auto numbers = value.cast<std::vector<int64_t>>();
        size_t at = 0;
        const auto take = [&] {
            if (at == numbers.size()) {
                throw std::invalid_argument(std::string(name) + " is too short a description");
            }
            return numbers[at++];
        };
        const auto positive = [&](const char* size) {
            const int64_t value = take();
            trqam::check_positive(value, size);
            return value;
        };
        result.runs = positive("runs");
        result.members = positive("members");
        result.layers = take();
        result.norm = take() != 0;
        if (result.layers < 1 || result.layers > trqam::kMaxLayers) {
            throw std::invalid_argument(std::string(name) + " has " +
                                        std::to_string(result.layers) +
                                        " hidden layers; 1 to " +
                                        std::to_string(trqam::kMaxLayers) + " are possible");
        }
        for (int64_t l = 0; l < result.layers + 2; ++l) {
            result.widths[l] = positive("width");
        }
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
    trqam::FieldShape field_shape() {
        return {integer("batch"), integer("observation"), integer("action"), integer("steps")};
    }

    // To be called when all fields are read.
    void done() const {
        if (at_ != PyTuple_GET_SIZE(call_.ptr())) {
            throw py::type_error("the call has " +
                                 std::to_string(PyTuple_GET_SIZE(call_.ptr())) +
                                 " fields; expected " + std::to_string(at_));
        }
    }

  private:
    // Raises what a conversion raised.
    template <typename V>
    static V checked(V value) {
        if (PyErr_Occurred()) throw py::error_already_set();
        return value;
    }
    PyObject* next(const char* name) {
        const bool left = at_ < PyTuple_GET_SIZE(call_.ptr());
        if (!left || PyUnicode_CompareWithASCIIString(names_[at_].ptr(), name) != 0) {
            throw py::type_error("field " + std::to_string(at_) + " of the call is " +
                                 (left ? py::str(names_[at_]).cast<std::string>() : "missing") +
                                 "; expected " + name);
        }
        return PyTuple_GET_ITEM(call_.ptr(), at_++);
    }

    py::handle call_;
    py::tuple names_;
    Py_ssize_t at_ = 0;
};

// How a call runs: instruction set (empty for the best), bfloat16 operands, threads, scratch
// memory; on a GPU the stream (a cudaStream_t) alone.
struct Execution {
    std::string instruction_set;
    trqam::Operands operands;
    trqam::Workspace workspace;
    bool cuda;
    void* stream;

    explicit Execution(py::handle call) {
        Fields fields(call);
        instruction_set = fields.text("instruction_set");
        operands = fields.flag("bf16") ? trqam::Operands::bf16 : trqam::Operands::exact;
        workspace.threads = static_cast<int>(fields.positive("threads"));
        workspace.data = fields.optional<char>("scratch");
        workspace.bytes = fields.integer("scratch_bytes");
        cuda = fields.flag("cuda");
        stream = fields.optional<void>("stream");
        fields.done();
    }

    template <typename T>
    const trqam::Passes<T>& passes() const {
        return trqam::passes<T>(chosen_set(), operands);
    }
    template <typename T>
    const trqam::Loops<T>& loops() const {
        return trqam::loops<T>(chosen_set());
    }
    // Calls one of both with the threads or the stream, without the GIL.
    template <class Cpu, class Cuda>
    void run(const Cpu& on_cpu, const Cuda& on_cuda) const {
        py::gil_scoped_release release;
        if (cuda) return on_cuda(stream);
        on_cpu(workspace.threads);
    }

  private:
    const char* chosen_set() const {
        return instruction_set.empty() ? nullptr : instruction_set.c_str();
    }
};

#ifdef TRQAM_WITH_CUDA
#define TRQAM_ON_CUDA(function, call) [&](void* stream) { function(call, stream); }
#else
#define TRQAM_ON_CUDA(function, call) \
    [](void*) { throw std::runtime_error("trqam_fast._C was built without CUDA"); }
#endif

template <typename T>
void path_kl(py::handle call, py::handle how) {
    const Execution execution(how);
    Fields fields(call);
    const trqam::Shape shape = fields.shape("shape");
    const trqam::PathKl<T> path_kl{shape,
                                   fields.schedule("schedule", shape),
                                   fields.positive("horizon"),
                                   fields.array<const T>("velocity"),
                                   fields.array<const T>("base_velocity"),
                                   fields.optional<double>("sums"),
                                   fields.array<T>("per_trajectory"),
                                   fields.array<T>("mean")};
    fields.done();
    const auto& loops = execution.loops<T>();
    execution.run([&](int threads) { trqam::path_kl(path_kl, loops, threads); },
                  TRQAM_ON_CUDA(trqam::path_kl_cuda, path_kl));
}

template <typename T>
void path_kl_backward(py::handle call, py::handle how) {
    const Execution execution(how);
    Fields fields(call);
    const trqam::Shape shape = fields.shape("shape");
    const trqam::PathKlBackward<T> backward{shape,
                                            fields.schedule("schedule", shape),
                                            fields.positive("horizon"),
                                            fields.array<const T>("velocity"),
                                            fields.array<const T>("base_velocity"),
                                            fields.array<const T>("upstream"),
                                            fields.array<T>("grad_velocity")};
    fields.done();
    const auto& loops = execution.loops<T>();
    execution.run([&](int threads) { trqam::path_kl_backward(backward, loops, threads); },
                  TRQAM_ON_CUDA(trqam::path_kl_backward_cuda, backward));
}

template <typename T>
void adjoint_matching(py::handle call, py::handle how) {
    const Execution execution(how);
    Fields fields(call);
    const trqam::Shape shape = fields.shape("shape");
    const trqam::AdjointMatching<T> matching{shape,
                                             fields.schedule("schedule", shape),
                                             fields.positive("horizon"),
                                             fields.array<const T>("velocity"),
                                             fields.array<const T>("base_velocity"),
                                             fields.array<const T>("adjoint"),
                                             fields.array<const T>("lam"),
                                             fields.optional<double>("sums"),
                                             fields.array<T>("loss"),
                                             fields.array<T>("path_kl"),
                                             fields.optional<T>("grad_velocity")};
    fields.done();
    const auto& loops = execution.loops<T>();
    execution.run([&](int threads) { trqam::adjoint_matching(matching, loops, threads); },
                  TRQAM_ON_CUDA(trqam::adjoint_matching_cuda, matching));
}

template <typename T>
void gradient_norm(py::handle call, py::handle how) {
    const Execution execution(how);
    Fields fields(call);
    const trqam::GradientNorm<T> norm{fields.integer("runs"), fields.integer("size"),
                                      fields.array<const T>("gradient"), fields.array<T>("norms")};
    fields.done();
    const auto& loops = execution.loops<T>();
    py::gil_scoped_release release;
    trqam::gradient_norm(norm, loops, execution.workspace.threads);
}

template <typename T>
void adam_step(py::handle call, py::handle how) {
    const Execution execution(how);
    Fields fields(call);
    const trqam::AdamStep<T> step{fields.integer("runs"),
                                  fields.integer("size"),
                                  fields.integer("stride"),
                                  fields.integer("target_size"),
                                  fields.integer("target_stride"),
                                  fields.array<T>("params"),
                                  fields.array<const T>("gradient"),
                                  fields.array<T>("exp_avg"),
                                  fields.array<T>("exp_avg_sq"),
                                  fields.optional<T>("targets"),
                                  fields.array<const T>("norms"),
                                  fields.real("step"),
                                  fields.real("lr"),
                                  fields.real("beta1"),
                                  fields.real("beta2"),
                                  fields.real("eps"),
                                  fields.real("max_norm"),
                                  fields.real("tau")};
    fields.done();
    const auto& loops = execution.loops<T>();
    py::gil_scoped_release release;
    trqam::adam_step(step, loops, execution.workspace.threads);
}

template <typename T>
void philox(py::handle call, py::handle how) {
    const Execution execution(how);
    Fields fields(call);
    const trqam::Philox<T> draw{fields.integer("runs"),
                                fields.integer("stream"),
                                fields.integer("high"),
                                fields.integer("normals"),
                                fields.integer("uniforms"),
                                fields.integer("integers"),
                                fields.array<const int64_t>("seeds"),
                                fields.array<const int64_t>("offset"),
                                fields.optional<T>("normal"),
                                fields.optional<T>("uniform"),
                                fields.optional<int64_t>("integer")};
    fields.done();
    const auto& loops = execution.loops<T>();
    py::gil_scoped_release release;
    trqam::philox(draw, loops, execution.workspace.threads);
}

// Passes return 0, or the bytes of scratch memory that they need.
template <typename T>
int64_t mlp_forward(py::handle call, py::handle how) {
    const Execution execution(how);
    Fields fields(call);
    const trqam::MlpForward<T> forward{fields.weights<T>("network"),
                                       fields.optional<const T>("inputs"), fields.integer("rows"),
                                       fields.optional<T>("out"), fields.optional<T>("tape")};
    fields.done();
    const auto& passes = execution.passes<T>();
    py::gil_scoped_release release;
    return passes.forward(forward, execution.workspace);
}

template <typename T>
int64_t mlp_backward(py::handle call, py::handle how) {
    const Execution execution(how);
    Fields fields(call);
    const trqam::MlpBackward<T> backward{fields.weights<T>("network"),
                                         fields.weights<T>("gradients"),
                                         fields.optional<const T>("inputs"),
                                         fields.optional<const T>("cotangent"),
                                         fields.optional<T>("tape"),
                                         fields.integer("rows"),
                                         fields.flag("want_weights"),
                                         fields.optional<T>("d_inputs")};
    fields.done();
    const auto& passes = execution.passes<T>();
    py::gil_scoped_release release;
    return passes.backward(backward, execution.workspace);
}

template <typename T>
int64_t action_gradient(py::handle call, py::handle how) {
    const Execution execution(how);
    Fields fields(call);
    const trqam::ActionGradient<T> gradient{fields.weights<T>("network"),
                                            fields.optional<const T>("inputs"),
                                            fields.integer("rows"),
                                            fields.integer("observation"),
                                            static_cast<T>(fields.real("cotangent")),
                                            fields.optional<T>("out"),
                                            fields.optional<T>("gradient")};
    fields.done();
    const auto& passes = execution.passes<T>();
    py::gil_scoped_release release;
    return passes.action_gradient(gradient, execution.workspace);
}

template <typename T>
int64_t sde_rollout(py::handle call, py::handle how) {
    const Execution execution(how);
    Fields fields(call);
    const trqam::Rollout<T> rollout{fields.weights<T>("velocity"),
                                    fields.weights<T>("base"),
                                    fields.field_shape(),
                                    fields.integer("ode_batch"),
                                    fields.optional<const T>("observations"),
                                    fields.optional<const T>("x0"),
                                    fields.optional<const T>("noise"),
                                    fields.optional<const T>("ode_observations"),
                                    fields.optional<const T>("ode_x0"),
                                    fields.optional<T>("trajectory"),
                                    fields.optional<T>("velocities"),
                                    fields.optional<T>("ode_x"),
                                    fields.optional<T>("tape")};
    fields.done();
    const auto& passes = execution.passes<T>();
    py::gil_scoped_release release;
    return passes.rollout(rollout, execution.workspace);
}

template <typename T>
int64_t lean_adjoint(py::handle call, py::handle how) {
    const Execution execution(how);
    Fields fields(call);
    const trqam::LeanAdjoint<T> sweep{fields.weights<T>("base"),
                                      fields.field_shape(),
                                      fields.optional<const T>("observations"),
                                      fields.optional<const T>("trajectory"),
                                      fields.optional<const T>("terminal"),
                                      fields.optional<T>("adjoints")};
    fields.done();
    const auto& passes = execution.passes<T>();
    py::gil_scoped_release release;
    return passes.lean_adjoint(sweep, execution.workspace);
}

template <typename T>
int64_t velocity_along(py::handle call, py::handle how) {
    const Execution execution(how);
    Fields fields(call);
    const trqam::VelocityAlong<T> along{fields.weights<T>("velocity"),
                                        fields.field_shape(),
                                        fields.optional<const T>("observations"),
                                        fields.optional<const T>("points"),
                                        fields.integer("point_stride"),
                                        fields.optional<T>("velocities")};
    fields.done();
    const auto& passes = execution.passes<T>();
    py::gil_scoped_release release;
    return passes.velocity_along(along, execution.workspace);
}

template <typename T>
void define_ops(py::module_& module, const std::string& precision) {
    module.def(("path_kl_" + precision).c_str(), &path_kl<T>);
    module.def(("path_kl_backward_" + precision).c_str(), &path_kl_backward<T>);
    module.def(("adjoint_matching_" + precision).c_str(), &adjoint_matching<T>);
    module.def(("gradient_norm_" + precision).c_str(), &gradient_norm<T>);
    module.def(("adam_step_" + precision).c_str(), &adam_step<T>);
    module.def(("philox_" + precision).c_str(), &philox<T>);
    module.def(("mlp_forward_" + precision).c_str(), &mlp_forward<T>);
    module.def(("mlp_backward_" + precision).c_str(), &mlp_backward<T>);
    module.def(("action_gradient_" + precision).c_str(), &action_gradient<T>);
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
    module.attr("max_layers") = trqam::kMaxLayers;
    module.def("instruction_sets", [] {
        const char* names[4];
        const int count = trqam::instruction_sets(names);
        return std::vector<std::string>(names, names + count);
    });
    define_ops<float>(module, "float32");
    define_ops<double>(module, "float64");
    module.def("read_windows", &read_windows);
}
