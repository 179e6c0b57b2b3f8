#include "numbers.hpp"

#include <limits>
#include <string>

namespace edgewatt {
namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_blank(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }
bool is_word(char c) { return is_digit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || c == '.'; }
bool is_sign(char c) { return c == '-' || c == '+'; }

// How long the number is that begins at `at`; 0 if none does.
std::size_t length_at(std::string_view text, std::size_t at) {
    auto digits_from = [&](std::size_t k) {
        while (k < text.size() && is_digit(text[k])) ++k;
        return k;
    };
    std::size_t end = at;
    if (end < text.size() && is_sign(text[end])) ++end;
    const std::size_t whole = digits_from(end);
    if (whole == end) return 0;
    end = whole;
    if (end < text.size() && text[end] == '.' && digits_from(end + 1) > end + 1) end = digits_from(end + 1);
    if (end < text.size() && (text[end] == 'e' || text[end] == 'E')) {
        const std::size_t power = end + 1 + (end + 1 < text.size() && is_sign(text[end + 1]));
        if (digits_from(power) > power) end = digits_from(power);
    }
    return end - at;
}

// |value| in `size` digits with `sign`; none if it does not fit or is the smallest integer, which means a missing one.
std::optional<int64_t> signed_value(const char* digits, std::size_t size, bool is_negative, bool rounds_up) {
    constexpr uint64_t most = std::numeric_limits<int64_t>::max();
    uint64_t value = 0;
    for (std::size_t k = 0; k < size; ++k) {
        const auto digit = static_cast<uint64_t>(digits[k] - '0');
        if (value > (most - digit) / 10) return std::nullopt;
        value = value * 10 + digit;
    }
    if (rounds_up && value == most) return std::nullopt;
    value += rounds_up;
    return is_negative ? -static_cast<int64_t>(value) : static_cast<int64_t>(value);
}

}  // namespace

std::string_view stripped(std::string_view text) {
    while (!text.empty() && is_blank(text.front())) text.remove_prefix(1);
    while (!text.empty() && is_blank(text.back())) text.remove_suffix(1);
    return text;
}

std::optional<int64_t> integer_of(std::string_view text) {
    text = stripped(text);
    const bool is_negative = !text.empty() && text[0] == '-';
    if (!text.empty() && is_sign(text[0])) text.remove_prefix(1);
    if (text.empty()) return std::nullopt;
    for (const char c : text)
        if (!is_digit(c)) return std::nullopt;
    return signed_value(text.data(), text.size(), is_negative, false);
}

std::optional<int64_t> scaled_integer_of(std::string_view text, int decimals) {
    text = stripped(text);
    if (text.empty() || length_at(text, 0) != text.size()) return std::nullopt;
    const bool is_negative = text[0] == '-';
    // Its digits without point and leading zeros, and the power of ten of the last of them.
    char digits[64];
    std::size_t size = 0, k = is_sign(text[0]) ? 1 : 0;
    long power = decimals;
    bool has_point = false;
    for (; k < text.size() && text[k] != 'e' && text[k] != 'E'; ++k) {
        if (text[k] == '.') {
            has_point = true;
            continue;
        }
        if (size || text[k] != '0') {
            if (size == sizeof digits) return std::nullopt;
            digits[size++] = text[k];
        }
        power -= has_point;
    }
    if (k < text.size()) {
        const bool is_small = text[k + 1] == '-';
        long exponent = 0;
        for (k += 1 + is_sign(text[k + 1]); k < text.size(); ++k)
            exponent = exponent > 9999 ? exponent : exponent * 10 + (text[k] - '0');
        power += is_small ? -exponent : exponent;
    }
    if (size == 0) return 0;
    for (; power > 0; --power) {
        if (size == sizeof digits) return std::nullopt;
        digits[size++] = '0';
    }
    const auto cut = static_cast<std::size_t>(-power);
    if (cut > size) return 0;
    const std::size_t kept = size - cut;
    bool rounds_up = false;
    if (cut) {
        bool is_more = false;  // than a half
        for (std::size_t d = kept + 1; d < size; ++d) is_more = is_more || digits[d] != '0';
        const bool is_odd = kept && (digits[kept - 1] - '0') % 2;
        rounds_up = digits[kept] > '5' || (digits[kept] == '5' && (is_more || is_odd));
    }
    return signed_value(digits, kept, is_negative, rounds_up);
}

std::string_view number_in(std::string_view text, int number) {
    // Two walks where it is counted from the end: no list to allocate.
    int found = 0, wanted = number;
    for (int walk = number < 0 ? 0 : 1; walk < 2; ++walk) {
        if (walk == 1 && number < 0) wanted = found + number;
        found = 0;
        for (std::size_t at = 0; at < text.size();) {
            const std::size_t length = at && is_word(text[at - 1]) ? 0 : length_at(text, at);
            if (!length) {
                ++at;
                continue;
            }
            if (walk == 1 && found == wanted) return text.substr(at, length);
            ++found;
            at += length;
        }
    }
    return {};
}

std::optional<std::string_view> rest_of_line(std::string_view text, std::string_view start) {
    while (!text.empty()) {
        const std::size_t end = text.find('\n');
        std::string_view line = text.substr(0, end);
        while (!line.empty() && is_blank(line.front())) line.remove_prefix(1);
        if (line.substr(0, start.size()) == start) return line.substr(start.size());
        if (end == std::string_view::npos) break;
        text.remove_prefix(end + 1);
    }
    return std::nullopt;
}

}  // namespace edgewatt
