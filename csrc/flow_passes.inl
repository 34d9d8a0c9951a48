// Rollouts, sweeps and values along trajectories of a velocity field. Rows are independent, so a
// task takes its rows through all steps without waiting for another. Included by passes.inl.

inline Inputs field_inputs(const FieldShape& shape) {
    return Inputs{shape.observation, shape.action, true};
}

// Tape rows of one step: those of trajectory `begin` at step k.
template <typename T>
Rows<T> step_rows(T* tape, const MlpWeights<T>& network, const FieldShape& shape, int64_t run,
                  int64_t k, int64_t begin) {
    return tape_rows(tape, network, shape.steps * shape.batch, run, k * shape.batch + begin);
}

template <class Arithmetic, typename T = typename Arithmetic::Real>
int64_t rollout(const Rollout<T>& call, const Workspace& workspace) {
    const FieldShape& shape = call.shape;
    const int64_t dim = shape.action, steps = shape.steps, runs = call.velocity.runs;
    const int threads = useful_threads(call.velocity, (shape.batch + call.ode_batch) * steps,
                                       workspace.threads);
    const Tasks chains(runs, shape.batch, threads), flows(runs, call.ode_batch, threads);
    const int64_t chunk = chains.chunk() > flows.chunk() ? chains.chunk() : flows.chunk();
    struct Local {
        Local(Arena& arena, const Rollout<T>& call, int64_t chunk)
            : velocity(arena, call.velocity, field_inputs(call.shape), chunk),
              base(arena, call.base, field_inputs(call.shape), chunk),
              rows(scratch_rows(arena, call.velocity, chunk, false)),
              base_rows(scratch_rows(arena, call.base, chunk, false)),
              x(arena.take<T>(chunk * call.shape.action)) {}
        Forward<Arithmetic> velocity, base;
        Rows<T> rows, base_rows;
        T* x;
    };
    const T h = T(1) / T(steps);
    const auto time = [&](int64_t k) { return T(k) / T(steps); };

    // One task of SDE rows.
    const auto chain = [&](Local& local, const Task& task) {
        const int64_t s = task.g, first = s * shape.batch + task.begin, size = task.count * dim;
        local.velocity.load(s);
        local.velocity.observe(call.observations + first * shape.observation, task.count);
        const auto at = [&](T* data, int64_t points, int64_t k) {
            return data + ((s * points + k) * shape.batch + task.begin) * dim;
        };
        T* x = at(call.trajectory, steps + 1, 0);
        std::memcpy(x, call.x0 + first * dim, size * sizeof(T));
        for (int64_t k = 0; k < steps; ++k) {
            const Rows<T> rows =
                call.tape ? step_rows(call.tape, call.velocity, shape, s, k, task.begin)
                          : local.rows;
            const T* padded_v = local.velocity.evaluate(x, time(k), task.count, rows);
            T* v = at(call.velocities, steps, k);
            copy_rows(padded_v, task.count, dim, v);
            T* next = at(call.trajectory, steps + 1, k + 1);
            if (k == steps - 1) {
                local.base.load(s);
                local.base.observe(call.observations + first * shape.observation, task.count);
                const T* u = local.base.evaluate(x, time(k), task.count, local.base_rows);
                for (int64_t m = 0; m < task.count; ++m) {
                    for (int64_t d = 0; d < dim; ++d) {
                        next[m * dim + d] = x[m * dim + d] + h * u[m * padded(dim) + d];
                    }
                }
                return;
            }
            // x + h (2 v - x / (t + h)) + sqrt(h) g eps, where h / (t_k + h) = 1 / (k + 1)
            const T spread = T(__builtin_sqrt(diffusion_squared(k, steps) / double(steps)));
            const T keep = T(1.0 - 1.0 / double(k + 1));
            const T* noise =
                call.noise + ((s * (steps - 1) + k) * shape.batch + task.begin) * dim;
            for (int64_t i = 0; i < size; ++i) {
                next[i] = keep * x[i] + T(2) * h * v[i] + spread * noise[i];
            }
            x = next;
        }
    };

    // One task of noise-free rows.
    const auto flow = [&](Local& local, const Task& task) {
        const int64_t first = task.g * call.ode_batch + task.begin;
        local.velocity.load(task.g);
        local.velocity.observe(call.ode_observations + first * shape.observation, task.count);
        std::memcpy(local.x, call.ode_x0 + first * dim, task.count * dim * sizeof(T));
        for (int64_t k = 0; k < steps; ++k) {
            const T* v = local.velocity.evaluate(local.x, time(k), task.count, local.rows);
            for (int64_t m = 0; m < task.count; ++m) {
                for (int64_t d = 0; d < dim; ++d) {
                    local.x[m * dim + d] += h * v[m * padded(dim) + d];
                }
            }
        }
        std::memcpy(call.ode_x + first * dim, local.x, task.count * dim * sizeof(T));
    };

    return in_team(
        workspace, threads, 0, [&](Arena& arena) { Local(arena, call, chunk); },
        [&](Arena& arena) {
            Local local(arena, call, chunk);
#pragma omp for schedule(dynamic, 1)
            for (int64_t index = 0; index < chains.count() + flows.count(); ++index) {
                if (index < chains.count()) {
                    chain(local, chains[index]);
                } else {
                    flow(local, flows[index - chains.count()]);
                }
            }
        });
}

// With h / (t_k + h) = 1 / (k + 1) and J_k the derivative of v_base(s, ., t_k + h) at X_k:
//   a_k = (k / (k + 1)) a_{k+1} + 2 h J_k^T a_{k+1}
template <class Arithmetic, typename T = typename Arithmetic::Real>
int64_t lean_adjoint(const LeanAdjoint<T>& call, const Workspace& workspace) {
    const FieldShape& shape = call.shape;
    const int64_t dim = shape.action, steps = shape.steps;
    const int threads = useful_threads(call.base, shape.batch * steps, workspace.threads);
    const Tasks tasks(call.base.runs, shape.batch, threads);
    struct Local {
        Local(Arena& arena, const LeanAdjoint<T>& call, int64_t chunk)
            : forward(arena, call.base, field_inputs(call.shape), chunk),
              pullback(arena, call.base, field_inputs(call.shape), chunk),
              rows(scratch_rows(arena, call.base, chunk, true)) {
            for (int64_t l = 0; l < call.base.layers; ++l) {
                grads[l] = arena.take<T>(chunk * padded(call.base.widths[l + 1]));
            }
        }
        Forward<Arithmetic> forward;
        Pullback<Arithmetic> pullback;
        Rows<T> rows;
        T* grads[kMaxLayers];
    };
    return in_team(
        workspace, threads, 0, [&](Arena& arena) { Local(arena, call, tasks.chunk()); },
        [&](Arena& arena) {
            Local local(arena, call, tasks.chunk());
#pragma omp for schedule(dynamic, 1)
            for (int64_t index = 0; index < tasks.count(); ++index) {
                const Task task = tasks[index];
                const int64_t s = task.g, first = s * shape.batch + task.begin;
                local.forward.load(s);
                local.pullback.load(s);
                local.forward.observe(call.observations + first * shape.observation, task.count);
                const T* above = call.terminal + first * dim;
                for (int64_t k = steps - 1; k >= 0; --k) {
                    const T* x = call.trajectory +
                                 ((s * (steps + 1) + k) * shape.batch + task.begin) * dim;
                    T* here = call.adjoints + ((s * steps + k) * shape.batch + task.begin) * dim;
                    local.forward.evaluate(x, T(k + 1) / T(steps), task.count, local.rows);
                    local.pullback.run(above, task.count, local.rows, local.grads);
                    const T* pulled = local.pullback.to_inputs(local.grads[0], task.count);
                    const T keep = T(double(k) / double(k + 1)), gain = T(2.0 / double(steps));
                    for (int64_t m = 0; m < task.count; ++m) {
                        for (int64_t d = 0; d < dim; ++d) {
                            here[m * dim + d] =
                                keep * above[m * dim + d] + gain * pulled[m * padded(dim) + d];
                        }
                    }
                    above = here;
                }
            }
        });
}

template <class Arithmetic, typename T = typename Arithmetic::Real>
int64_t velocity_along(const VelocityAlong<T>& call, const Workspace& workspace) {
    const FieldShape& shape = call.shape;
    const int64_t dim = shape.action, steps = shape.steps;
    const int threads = useful_threads(call.velocity, shape.batch * steps, workspace.threads);
    const Tasks tasks(call.velocity.runs, shape.batch, threads);
    struct Local {
        Local(Arena& arena, const VelocityAlong<T>& call, int64_t chunk)
            : forward(arena, call.velocity, field_inputs(call.shape), chunk),
              rows(scratch_rows(arena, call.velocity, chunk, false)) {}
        Forward<Arithmetic> forward;
        Rows<T> rows;
    };
    return in_team(
        workspace, threads, 0, [&](Arena& arena) { Local(arena, call, tasks.chunk()); },
        [&](Arena& arena) {
            Local local(arena, call, tasks.chunk());
#pragma omp for schedule(dynamic, 1)
            for (int64_t index = 0; index < tasks.count(); ++index) {
                const Task task = tasks[index];
                const int64_t s = task.g, first = s * shape.batch + task.begin;
                local.forward.load(s);
                local.forward.observe(call.observations + first * shape.observation, task.count);
                for (int64_t k = 0; k < steps; ++k) {
                    const int64_t row = k * shape.batch + task.begin;
                    const T* v = local.forward.evaluate(
                        call.points + s * call.point_stride + row * dim, T(k) / T(steps),
                        task.count, local.rows);
                    copy_rows(v, task.count, dim,
                              call.velocities + (s * steps * shape.batch + row) * dim);
                }
            }
        });
}
