#include "run.hpp"

#include <fcntl.h>
#include <sched.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>

#include "numbers.hpp"
#include "steady.hpp"
#include "verbs.hpp"

namespace edgewatt {
namespace {

constexpr int64_t flush_ns = second_ns / 2;  // between two `items` events; the promise is one second
constexpr std::size_t most_items = 4096;     // in one event: keeps the line short

std::map<std::string, Make>& runners() {
    static std::map<std::string, Make> known;
    return known;
}

double seconds(int64_t t_ns) { return static_cast<double>(t_ns) * 1e-9; }

// A file that tells a temperature or a power: times `scale` it is in the unit of its tolerance.
struct SteadyNode {
    std::string path;
    double scale;

    std::optional<double> read() const {
        char content[65];
        const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
        if (fd < 0) return std::nullopt;
        const ssize_t n = ::read(fd, content, sizeof content - 1);
        close(fd);
        if (n <= 0) return std::nullopt;
        content[n] = '\0';
        char* end = nullptr;
        const double value = std::strtod(content, &end);
        if (end == content || !stripped(end).empty() || !std::isfinite(value)) return std::nullopt;
        return value * scale;
    }
};

// The job's words, checked whole before anything is done; a limit that is not set is infinite.
struct Plan {
    explicit Plan(const json::Value& job)
        : item_phases(names(job, "item_phases")), isolate(names(job, "isolate")), params(mapping(job, "params")) {
        if (item_phases.empty()) throw Refused("job: item_phases is empty; an item has at least one phase");
        if (item_phases.size() > Marks::most) throw Refused("job: item_phases names more than " + std::to_string(Marks::most));
        for (const std::string& phase : isolate)
            if (std::find(item_phases.begin(), item_phases.end(), phase) == item_phases.end()) {
                std::string all;
                for (const std::string& one : item_phases) all += (all.empty() ? "" : ", ") + one;
                throw Refused("job: isolate names " + phase + "; the phases of an item are " + all);
            }
        runner = text(job, "runner");
        item_count = static_cast<int64_t>(std::min(required(job, "item_count", 1), 1e15));
        folder = text(job, "folder");
        repeats = static_cast<int>(std::min(number(job, "repeats", 1, 1), 1e6));
        idle_s = number(job, "idle_s", 5);
        window_s = number(job, "window_s", 10);
        isolated_s = number(job, "isolated_s", 2);
        max_window_s = number(job, "max_window_s", 600);
        min_items = static_cast<int64_t>(std::min(number(job, "min_items", 1), 1e15));
        load_limit_s = limit(job, "load_limit_s");
        item_limit_s = limit(job, "item_limit_s");
        const json::Value& steady = mapping(job, "steady");
        min_s = number(steady, "min_s", 1);
        max_s = number(steady, "max_s", 60);
        block_s = number(steady, "block_s", 0.5);
        tolerance = number(steady, "tolerance", 0.02);
        blocks = static_cast<int>(std::min(number(steady, "blocks", 5, 2), 1e6));
        const json::Value& given = steady["nodes"];
        bool is_nodes = given.is(json::Value::Kind::list) || !given.is_set();
        for (const json::Value& node : given.items) is_nodes = is_nodes && node.is(json::Value::Kind::object);
        if (!is_nodes) throw Refused("job: steady nodes is " + json::shown(given) + "; wanted a list of objects");
        for (const json::Value& node : given.items) {
            rule_nodes.push_back({text(node, "name"), number(node, "tolerance", 1)});
            nodes.push_back({text(node, "path"), number(node, "scale", 1, -1e300)});
        }
    }

    static double limit(const json::Value& job, const char* key) {
        return job[key].is(json::Value::Kind::null) ? HUGE_VAL : required(job, key, 0);
    }

    std::vector<std::string> item_phases, isolate;
    const json::Value& params;
    std::string runner;
    std::filesystem::path folder;
    int64_t item_count, min_items;
    int repeats, blocks;
    double idle_s, window_s, isolated_s, max_window_s, load_limit_s, item_limit_s;
    double min_s, max_s, block_s, tolerance;
    std::vector<Steady::Node> rule_nodes;
    std::vector<SteadyNode> nodes;
};

// Memory limit, niceness and affinity as they are after setting them; an error where one is not allowed.
json::Object configured(const json::Value& job) {
    cpu_set_t set;
    CPU_ZERO(&set);
    for (const json::Value& cpu : job["affinity"].items)
        if (cpu.is(json::Value::Kind::integer) && cpu.integer >= 0 && cpu.integer < CPU_SETSIZE) CPU_SET(static_cast<std::size_t>(cpu.integer), &set);
        else throw Refused("job: affinity is " + json::shown(job["affinity"]) + "; wanted a list of processors");
    if (job["affinity"].is_set() && sched_setaffinity(0, sizeof set, &set))
        throw std::runtime_error("affinity " + json::shown(job["affinity"]) + ": " + text_of(errno));
    const int niceness = static_cast<int>(std::clamp(job["niceness"].real, -20.0, 19.0));
    if (niceness && setpriority(PRIO_PROCESS, 0, niceness))
        throw std::runtime_error("niceness " + std::to_string(niceness) + ": " + text_of(errno));
    json::Object told;
    if (job["memory_limit_bytes"].is_set()) {
        const double bytes = required(job, "memory_limit_bytes", 1);
        rlimit limit{};
        limit.rlim_cur = limit.rlim_max = static_cast<rlim_t>(std::min(bytes, 9e18));
        if (setrlimit(RLIMIT_AS, &limit)) throw std::runtime_error("memory_limit_bytes: " + text_of(errno));
        told.add("memory_limit_bytes", static_cast<int64_t>(limit.rlim_cur));
    } else {
        told.raw("memory_limit_bytes", "null");
    }
    CPU_ZERO(&set);
    std::vector<std::string> processors;
    if (sched_getaffinity(0, sizeof set, &set) == 0)
        for (std::size_t cpu = 0; cpu < CPU_SETSIZE; ++cpu)
            if (CPU_ISSET(cpu, &set)) processors.push_back(std::to_string(cpu));
    return told.add("niceness", getpriority(PRIO_PROCESS, 0)).raw("affinity", json::list(processors));
}

// The most physical memory this program has held at once.
int64_t peak_memory_bytes() {
    std::ifstream status("/proc/self/status");
    for (std::string line; std::getline(status, line);)
        if (line.rfind("VmHWM:", 0) == 0) return std::atoll(line.c_str() + 6) * 1024;
    rusage used{};
    getrusage(RUSAGE_SELF, &used);
    return int64_t{used.ru_maxrss} * 1024;
}

// One job in progress; where it is stands in members that a second thread, the heartbeat, may read.
class Execution {
public:
    Execution(Agent& agent, const Plan& plan, json::Object settings)
        : agent_(agent), plan_(plan), settings_(std::move(settings)), part_(plan.folder.string() + ".part") {
        begin("load", 0);
        marks_ns_.reserve((most_items + 1) * (plan.item_phases.size() + 1));
        seen_.reserve(most_items + 1);
        kept_.assign(0, 0);
        started([this] { watch(); }).detach();
    }

    // All of the job, in the protocol's order; what it has written is removed again unless it ends well.
    void whole() {
        try {
            load();
            idle(0);
            for (int repeat = 0; repeat < plan_.repeats; ++repeat) {
                warm_up(repeat);
                window(repeat);
                for (const std::string& phase : plan_.isolate) alone(phase, repeat);
                idle(repeat);
            }
            save();
        } catch (...) {
            remove_part();
            throw;
        }
        rusage used{};
        getrusage(RUSAGE_SELF, &used);
        const double cpu_s = static_cast<double>(used.ru_utime.tv_sec + used.ru_stime.tv_sec) + 1e-6 * static_cast<double>(used.ru_utime.tv_usec + used.ru_stime.tv_usec);
        agent_.emit(json::Object("done").add("peak_memory_bytes", peak_memory_bytes()).add("cpu_s", cpu_s));
    }

private:
    using Work = std::function<void(int64_t item)>;
    using Enough = std::function<bool(int64_t items, int64_t end)>;  // asked after each item

    // -- the parts of a job

    void load() {
        const int64_t start = begin("load", 0);
        if (plan_.runner.find(':') == std::string::npos || plan_.runner.front() == ':' || plan_.runner.back() == ':')
            throw Refused("job: runner is " + json::shown_text(plan_.runner) + "; wanted module:name");
        const auto make = runners().find(plan_.runner);
        if (make == runners().end()) {
            std::string there;
            for (const auto& known : runners()) there += (there.empty() ? "" : ", ") + known.first;
            throw Refused("job: runner " + plan_.runner + " cannot be loaded here: " +
                          (there.empty() ? "this agent was built without a runtime's header, to sample alone" : "this agent has " + there));
        }
        std::error_code error;
        if (std::filesystem::exists(plan_.folder, error) && !std::filesystem::is_empty(plan_.folder, error))
            throw Refused("job: folder " + plan_.folder.string() + " is not empty");
        std::filesystem::create_directories(plan_.folder.parent_path(), error);
        if (!std::filesystem::create_directory(part_, error))
            throw std::runtime_error((error ? error.message() : text_of(EEXIST)) + ": " + part_.string());
        has_part_ = true;
        runner_ = make->second({plan_.params, plan_.item_count, plan_.item_phases, part_});
        const json::Object engine = runner_->load();
        const int64_t end = now_ns();
        agent_.emit(json::Object("loaded").add("t_ns", end).raw("engine", engine.str()).add("pid", static_cast<int64_t>(getpid())).raw("settings", settings_.str()));
        this->end(start, end);
    }

    void idle(int repeat) {
        const int64_t start = begin("idle", repeat);
        agent_.sleep_until(start + ns(plan_.idle_s));
        end(start, now_ns());
    }

    void warm_up(int repeat) {
        Steady rule(plan_.tolerance, plan_.blocks, plan_.rule_nodes);
        std::vector<double> block;
        const int64_t start = begin("warmup", repeat);
        int64_t block_start = start, items = 0, last = start;
        if (plan_.max_s > 0) {
            int64_t next = 0;
            last = items_of(plan_.item_phases, [&] { return next++ % plan_.item_count; }, [this](int64_t item) { runner_->run(item, marks_); },
                [&](int64_t, int64_t end) {
                    block.push_back(static_cast<double>(end - marks_.stamps_ns[0]));
                    if (seconds(end - block_start) >= plan_.block_s) {
                        std::vector<std::optional<double>> readings;
                        for (const SteadyNode& node : plan_.nodes) readings.push_back(node.read());
                        rule.add(median(block) * 1e-9, readings);
                        block.clear();
                        block_start = now_ns();
                    }
                    const double elapsed_s = seconds(end - start);
                    share_ = elapsed_s / plan_.max_s;
                    return elapsed_s >= plan_.max_s || (elapsed_s >= plan_.min_s && rule.is_reached());
                });
            items = items_;
        }
        agent_.emit(json::Object("steady")
                        .add("repeat", repeat)
                        .add("reached", rule.is_reached())
                        .add("after_s", seconds(last - start))
                        .add("items", items)
                        .add("detail", plan_.max_s > 0 ? rule.detail() : "no warm-up asked for"));
        if (items) end(start, last);
    }

    void window(int repeat) {
        const int64_t least = std::max(plan_.min_items, repeat ? 1 : plan_.item_count);  // the first sees every picture
        const int64_t start = begin("window", repeat);
        std::vector<bool>& kept = is_kept_;
        const int64_t last = items_of(plan_.item_phases, [this] { return picture_++ % plan_.item_count; },
            [this](int64_t item) { runner_->run(item, marks_); },
            [&](int64_t items, int64_t end) {
                const int64_t item = seen_.back();
                if (kept.size() <= static_cast<std::size_t>(item)) kept.resize(static_cast<std::size_t>(item) + 1);
                if (!kept[static_cast<std::size_t>(item)]) {
                    runner_->keep(item);  // after the item's end, so outside what is timed
                    kept[static_cast<std::size_t>(item)] = true;
                    kept_.push_back(item);
                }
                const double elapsed_s = seconds(end - start);
                share_ = std::min(static_cast<double>(items) / static_cast<double>(least), plan_.window_s > 0 ? elapsed_s / plan_.window_s : 1);
                return (elapsed_s >= plan_.window_s && items >= least) || elapsed_s >= plan_.max_window_s;
            });
        end(start, last);
    }

    void alone(const std::string& phase, int repeat) {
        const int64_t start = begin(phase, repeat);
        std::size_t next = 0;
        const int64_t last = items_of({phase}, [&] { return kept_[next++ % kept_.size()]; },
            [&](int64_t item) {
                marks_(phase.c_str());
                runner_->run_phase(phase, item);
            },
            [&](int64_t, int64_t end) {
                const double elapsed_s = seconds(end - start);
                share_ = plan_.isolated_s > 0 ? elapsed_s / plan_.isolated_s : 1;
                return elapsed_s >= plan_.isolated_s;
            });
        end(start, last);
    }

    // The outputs appear in the job's folder whole or not at all.
    void save() {
        begin("save", plan_.repeats - 1);
        runner_->save();
        std::filesystem::rename(part_, plan_.folder);
        has_part_ = false;
        agent_.emit(json::Object("saved").add("folder", plan_.folder.string()).add("items", static_cast<int64_t>(kept_.size())));
    }

    void remove_part() {
        std::error_code ignored;
        if (has_part_.exchange(false)) std::filesystem::remove_all(part_, ignored);
    }

    // -- items

    // Items one after the other until it is enough, or until asked to end; the end of the last.
    int64_t items_of(const std::vector<std::string>& phases, const std::function<int64_t()>& next, const Work& work, const Enough& enough) {
        int64_t flushed = now_ns(), end = flushed;
        try {
            while (true) {
                const int64_t item = next();
                runner_->prepare(item);
                marks_.n = 0;
                work(item);
                end = now_ns();
                check_marks(phases);
                marks_ns_.insert(marks_ns_.end(), marks_.stamps_ns.begin(), marks_.stamps_ns.begin() + static_cast<long>(marks_.n));
                marks_ns_.push_back(end);
                seen_.push_back(item);
                const int64_t items = ++items_;
                step_ns_ = end;
                if (enough(items, end) || agent_.stopping()) break;
                if (end - flushed >= flush_ns || seen_.size() >= most_items) {
                    tell_items(phases);
                    flushed = end;
                }
            }
        } catch (...) {
            tell_items(phases);
            throw;
        }
        tell_items(phases);
        return end;
    }

    void check_marks(const std::vector<std::string>& phases) const {
        bool is_right = marks_.n == phases.size();
        for (std::size_t k = 0; is_right && k < phases.size(); ++k) is_right = phases[k] == marks_.names[k];
        if (!is_right) throw std::runtime_error("the runner marked " + std::to_string(marks_.n) + " phases, other than those of the job");
    }

    void tell_items(const std::vector<std::string>& phases) {
        if (seen_.empty()) return;
        const auto n = static_cast<int64_t>(seen_.size());
        agent_.emit(json::Object("items")
                        .add("part", phase_)
                        .add("repeat", repeat_)
                        .add("phases", phases)
                        .add("first", items_ - n)
                        .add("n", n)
                        .add("picture", json::base64(seen_.data(), seen_.size() * 8))
                        .add("marks_ns", json::base64(marks_ns_.data(), marks_ns_.size() * 8)));
        seen_.clear();
        marks_ns_.clear();
    }

    // -- where it is

    int64_t begin(const std::string& phase, int repeat) {
        const std::lock_guard<std::mutex> guard(lock_);
        phase_ = phase;
        repeat_ = repeat;
        items_ = 0;
        share_ = 0;
        start_ns_ = step_ns_ = now_ns();
        return start_ns_;
    }

    // The part is told; AskedToEnd if the agent was asked to end meanwhile.
    void end(int64_t start_ns, int64_t end_ns) {
        agent_.emit(json::Object("phase").add("phase", phase_).add("repeat", repeat_).add("items", items_.load()).add("start_ns", start_ns).add("end_ns", end_ns));
        if (agent_.look()) throw AskedToEnd();
    }

    // The heartbeat, from a thread of its own: says where the work is, and ends what hangs.
    void watch() {
        const timespec half{0, 500'000'000};
        for (int beat = 0;; ++beat) {
            nanosleep(&half, nullptr);
            const int64_t now = now_ns();
            if (beat % 2) tell_alive(now);
            end_if_hung(now);
        }
    }

    void tell_alive(int64_t now) {
        const std::lock_guard<std::mutex> guard(lock_);
        const double share = phase_ == "idle" && plan_.idle_s > 0 ? seconds(now - start_ns_) / plan_.idle_s : share_.load();
        agent_.emit(json::Object("alive")
                        .add("t_ns", now)
                        .add("phase", phase_)
                        .add("repeat", repeat_)
                        .add("items", items_.load())
                        .add("share", std::round(std::clamp(share, 0.0, 1.0) * 1e4) / 1e4)
                        .add("step_s", std::round(seconds(now - step_ns_) * 1e3) / 1e3));
    }

    void end_if_hung(int64_t now) {
        std::string phase;
        {
            const std::lock_guard<std::mutex> guard(lock_);
            phase = phase_;
        }
        const bool is_item = phase != "load" && phase != "save" && phase != "idle";
        const double limit_s = is_item ? plan_.item_limit_s : plan_.load_limit_s, step_s = seconds(now - step_ns_);
        if (phase == "idle" || step_s <= limit_s) return;
        char message[256];
        std::snprintf(message, sizeof message, "%s%s has been at work for %.1f s; the limit is %g s", phase.c_str(),
                      is_item ? (": item " + std::to_string(items_)).c_str() : "", step_s, limit_s);
        agent_.emit(json::Object("error").add("t_ns", now).add("kind", "hung").add("message", std::string(message)).add("detail", ""), true);
        agent_.drain();
        remove_part();
        _exit(1);
    }

    Agent& agent_;
    const Plan& plan_;
    json::Object settings_;
    std::filesystem::path part_;  // becomes the job's folder when it is whole
    std::atomic<bool> has_part_{false};
    std::unique_ptr<Runner> runner_;
    int64_t picture_ = 0;
    std::vector<bool> is_kept_;
    std::vector<int64_t> kept_, seen_, marks_ns_;
    Marks marks_;  // of the item in hand

    std::mutex lock_;  // of the next two, where the second thread reads or the first writes them
    std::string phase_;
    int repeat_ = 0;
    std::atomic<int64_t> items_{0}, start_ns_{0}, step_ns_{0};
    std::atomic<double> share_{0};
};

}  // namespace

bool add_runner(const char* name, Make make) { return runners().emplace(name, std::move(make)).second; }

std::vector<std::string> engines() {
    std::vector<std::string> names;
    for (const auto& known : runners()) names.push_back(known.first.substr(known.first.find(':') + 1));
    return names;
}

void run(Agent& agent, const json::Value& job) {
    // Neither is ever destroyed: the heartbeat reads them until the process ends.
    const Plan& plan = *new Plan(job);
    (*new Execution(agent, plan, configured(job))).whole();
}

}  // namespace edgewatt
