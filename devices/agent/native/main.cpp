// The native agent: samples meters and runs jobs on the device, on the device's clock (docs/agent-protocol.md).
//
//     edgewatt-agent hello|clock|sample|run|pulse JOB.json

#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/utsname.h>
#include <unistd.h>
#include <unwind.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <new>

#include "agent.hpp"
#include "verbs.hpp"

namespace edgewatt {
namespace {

constexpr int64_t ping_silence_ns = 5 * second_ns;  // a harness that pings does so every few milliseconds
constexpr std::size_t most_job_bytes = 4u << 20;

std::string content_of(const char* path, std::size_t most) {
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) throw std::runtime_error(text_of(errno) + ": " + path);
    std::string content;
    char some[4096];
    for (ssize_t n; (n = read(fd, some, sizeof some)) != 0 && content.size() <= most;) {
        if (n > 0) content.append(some, static_cast<std::size_t>(n));
        else if (errno != EINTR) break;
    }
    close(fd);
    return content;
}

json::Value job_of(const char* path) {
    json::Value job;
    try {
        const std::string content = content_of(path, most_job_bytes);
        if (content.size() > most_job_bytes) throw std::runtime_error("more than 4 MiB");
        job = json::parsed(content);
    } catch (const std::runtime_error& error) {
        throw Refused(std::string("job ") + path + ": " + error.what());
    }
    if (!job.is(json::Value::Kind::object)) throw Refused(std::string("job ") + path + ": wanted a JSON object, found " + json::shown(job));
    return job;
}

// What this machine says of itself.
json::Object facts() {
    utsname name{};
    uname(&name);
    json::Object facts;
    facts.add("machine", name.machine).add("system", name.sysname).add("kernel", name.release);
    facts.add("processors", static_cast<int64_t>(sysconf(_SC_NPROCESSORS_CONF)));
    facts.add("page_bytes", static_cast<int64_t>(sysconf(_SC_PAGESIZE)));
    try {
        const std::string id = content_of("/proc/sys/kernel/random/boot_id", 64);
        facts.add("boot_id", id.substr(0, id.find('\n')));
    } catch (const std::runtime_error&) {
        facts.raw("boot_id", "null");
    }
    return facts;
}

// Time stamps: `n` of them `period_s` apart, or one for each line read from stdin.
void clock(Agent& agent, const json::Value& job) {
    if (job["ping"].is_set()) {
        char said[4096];
        for (int64_t heard = awake_ns(); !agent.look() && awake_ns() - heard < ping_silence_ns;) {
            const ssize_t n = agent.heard(said, sizeof said, static_cast<int>(look_ns / 1'000'000));
            if (n == 0) return;
            if (n > 0) heard = awake_ns();
            for (ssize_t k = 0; k < n; ++k)
                if (said[k] == '\n') agent.emit(json::Object("clock").add("t_ns", now_ns()));
        }
        return;
    }
    const auto n = static_cast<int64_t>(number(job, "n", 20, 1));
    const double period_ns = number(job, "period_s", 0.01) * 1e9;
    const int64_t start = now_ns();
    for (int64_t k = 0; k < n; ++k) {
        agent.sleep_until(start + static_cast<int64_t>(static_cast<double>(k) * period_ns));
        if (agent.look()) return;
        agent.emit(json::Object("clock").add("t_ns", now_ns()));
    }
}

void greet(Agent& agent, const std::string& verb) {
    json::Object hello("hello");
    hello.add("protocol", 1).add("agent", "native 1").add("verb", verb).add("clock", "boottime");
    hello.add("t_ns", now_ns()).add("pid", static_cast<int64_t>(getpid())).add("engines", engines());
    if (verb == "hello") hello.raw("facts", facts().str());
    agent.emit(hello);
    agent.drain();
}

void act(Agent& agent, const std::string& verb, const json::Value& job) {
    if (verb == "clock") clock(agent, job);
    if (verb == "sample") sample(agent, job);
    if (verb == "run") run(agent, job);
    if (verb == "pulse") pulse(agent, job);
    if (verb == "call" || verb == "hold") throw Refused("`" + verb + "` calls Python functions, which the native agent cannot");
}

bool is_out_of_memory(std::string text) {
    for (char& c : text) c = static_cast<char>(c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c);
    for (const char* words : {"bad_alloc", "out of memory", "cannot allocate memory", "failed to allocate", "can't allocate memory"})
        if (text.find(words) != std::string::npos) return true;
    return false;
}

std::string one_line(const std::string& text) {
    std::string line;
    for (const char c : text)
        if (!strchr(" \t\r\n", c)) line += c;
        else if (!line.empty() && line.back() != ' ') line += ' ';
    return line.substr(0, 2000);
}

int whole(const std::string& verb, const std::string& path) {
    const bool has_suffix = path.size() > 5 && path.compare(path.size() - 5, 5, ".json") == 0;
    // Never destroyed: its threads use it until the process ends.
    Agent& agent = *new Agent(verb, (has_suffix ? path.substr(0, path.size() - 5) : path) + ".events.jsonl");
    std::string refusal;
    json::Value job;
    try {
        job = job_of(path.c_str());
        if (job["spool"].is(json::Value::Kind::null) || job["spool"].is_set()) agent.open_spool();
        const double silence_s = job["heartbeat_s"].is(json::Value::Kind::null) ? 0 : number(job, "heartbeat_s", 0, 0.1);
        const std::string beat_file = job["heartbeat_file"].is_set() ? text(job, "heartbeat_file") : "";
        if (!beat_file.empty() && silence_s == 0) throw Refused("job: heartbeat_file without heartbeat_s; wanted how often it changes");
        agent.watch(silence_s, beat_file, !(verb == "clock" && job["ping"].is_set()));
    } catch (const std::runtime_error& error) {
        refusal = error.what();
    }
    greet(agent, verb);
    int status = 0;
    std::string kind, message;
    try {
        if (!refusal.empty()) throw Refused(refusal);
        if (!agent.look()) act(agent, verb, job);  // telling of itself may have taken until then
    } catch (const AskedToEnd&) {
    } catch (const Refused& error) {
        status = 2, kind = "refused", message = error.what();
    } catch (const std::bad_alloc&) {
        status = 1, kind = "out_of_memory", message = "memory ran out";
    } catch (const std::exception& error) {
        status = 1, kind = is_out_of_memory(error.what()) ? "out_of_memory" : "failed", message = error.what();
    }
    if (kind.empty()) {
        const char* reason[] = {"done", "stopped", "orphaned"};
        agent.emit(json::Object("end").add("t_ns", now_ns()).add("reason", reason[agent.stopping()]), true);
    } else {
        agent.emit(json::Object("error").add("t_ns", now_ns()).add("kind", kind).add("message", one_line(message)).add("detail", ""), true);
    }
    agent.drain();
    if (agent.stopping() == orphaned) agent.end_group();
    return status;
}

// ---------------------------------------------------------------------------------------------------------------------
// A crash in a model's library leaves its trace on stderr, and the signal as the way the process ended.

_Unwind_Reason_Code tell_frame(_Unwind_Context* context, void* depth) {
    const auto at = static_cast<uintptr_t>(_Unwind_GetIP(context));
    Dl_info about{};
    const bool is_known = dladdr(reinterpret_cast<void*>(at), &about) && about.dli_fname;
    const auto base = is_known ? reinterpret_cast<uintptr_t>(about.dli_fbase) : 0;
    dprintf(2, "  %s+0x%zx %s\n", is_known ? about.dli_fname : "?", static_cast<std::size_t>(at - base), is_known && about.dli_sname ? about.dli_sname : "");
    return ++*static_cast<int*>(depth) < 40 ? _URC_NO_REASON : _URC_END_OF_STACK;
}

void on_crash(int signal, siginfo_t* info, void*) {
    ::signal(signal, SIG_DFL);  // also if telling crashes
    dprintf(2, "Fatal signal %d (%s) at address %p; most recent call first:\n", signal, strsignal(signal), info->si_addr);
    int depth = 0;
    _Unwind_Backtrace(tell_frame, &depth);
    raise(signal);
}

void tell_crashes() {
    static char stack[64 << 10];
    stack_t aside{};
    aside.ss_sp = stack;
    aside.ss_size = sizeof stack;
    sigaltstack(&aside, nullptr);
    struct sigaction action {};
    action.sa_sigaction = on_crash;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    for (const int signal : {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT}) sigaction(signal, &action, nullptr);
}

}  // namespace
}  // namespace edgewatt

int main(int argc, char** argv) {
    const std::string verbs = "hello|clock|sample|call|hold|run|pulse", verb = argc == 3 ? argv[1] : "";
    if (verb.empty() || ("|" + verbs + "|").find("|" + verb + "|") == std::string::npos || verb.find('|') != std::string::npos) {
        std::fprintf(stderr, "usage: edgewatt-agent %s JOB.json\n", verbs.c_str());
        return 2;
    }
    edgewatt::tell_crashes();
    int status = 1;
    try {
        status = edgewatt::whole(verb, argv[2]);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "edgewatt-agent: %s\n", error.what());
    }
    std::fflush(nullptr);
    _exit(status);  // everything is written, and a library's teardown must not turn a good run into a crash
}
