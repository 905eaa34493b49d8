package Serai::Dev;

# A site that is run for its author, by `serai dev`: what fails is shown in the
# browser with the lines of the source around it. Nothing else than that, and
# the news below, differs from a site at the provider.
#
# Beside the words of docs/reference/zygote-protocol.md it says on the status
# socket, before `ready` and after each request:
#   file PATH       that file is part of the code: load anew when it changes
#   broken MESSAGE  the code did not load: every request is answered with why

use v5.36;
use parent -norequire, 'Serai::Site';
use Socket qw(MSG_NOSIGNAL);
use Serai::Launch;
use Serai::Reply;
use Serai::Site;

use constant AROUND => 5;    # lines of the source before and after the one that is meant

my $engine = $INC{'Serai/Dev.pm'} =~ s{/Serai/Dev\.pm\z}{}r;
my $root;       # of the site
my $request;    # the environment of the request that is being answered
my $status;     # a copy of the status socket, for the workers too
my %told;       # names in %INC, and files of the manifest
my $loaded;     # how many names %INC had then

sub load ($site) {
    $site->{follows} = 1;
    $root = $site->{root};
    open $status, '+<&', Serai::Launch::STATUS or die "the status socket: $!\n";
    if (!eval { $site->SUPER::load; 1 }) {
        my $sentence = $@;
        my $all = delete $site->{error} // $sentence;
        $site->{respond} = sub { explain($sentence, $all) };
        news("broken $sentence");
    }
    my $respond = $site->{respond};
    $site->{respond} = sub {
        $request = $_[0];
        &$respond;
        tell_files($site) if keys %INC != $loaded;
    };
    $Serai::Reply::explain = \&explain;
    tell_files($site);
}

sub news ($line) { send $status, substr($line, 0, 4096), MSG_NOSIGNAL }

# tell_files names the files of the code that were not told before. One that did
# not compile has no path in %INC.
sub tell_files ($site) {
    $loaded = keys %INC;
    for my $name ((grep { defined } @$site{qw(app startup)}), keys %INC) {
        next if $told{$name}++;
        my $path = $INC{$name} // (grep { -f } map { "$_/$name" } grep { !ref } @INC)[0] // $name;
        next if ref $path;
        $path = "$root/$path" if $path !~ m{\A/};
        news("file $path") if index($path, "$engine/") != 0 && $path !~ /\n/;
    }
}

# explain answers with a page on an error. The text is what Perl said, with the
# callers after it.
sub explain ($what, $text) {
    my ($type, $page) = ($request->{HTTP_ACCEPT} // '') =~ m{text/html} ? ('text/html', page($what, $text)) : ('text/plain', "$text\n");
    Serai::Reply::whole(500, ['Content-Type' => "$type; charset=utf-8", 'Cache-Control' => 'no-store',
        'Content-Security-Policy' => "default-src 'none'; style-src 'unsafe-inline'"], bytes($page));
}

sub page ($what, $text) {
    my ($title, $body) = map { escaped(s/\s+\z//r) } $what, $text;
    my $asked = escaped(join ' ', @$request{qw(REQUEST_METHOD REQUEST_URI)});
    my (%seen, $source);
    while ($text =~ /(?: at |^)((?:(?! at )[^\n])+?) line (\d+)/mg) {
        my ($file, $line) = ($1, $2);
        $source .= excerpt($file, $line) // '' if !$seen{"$file $line"}++;
    }
    $source //= '';
    return <<"END";
<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>$title</title>
<meta name="viewport" content="width=device-width">
<style>body{font:1em/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#222}
h1{font-size:1.3em}h2{font:bold .9em monospace;margin:2em 0 0}
pre{background:#f4f4f4;padding:.6em;overflow-x:auto;margin:.3em 0}pre.error{background:#fdecea}
mark{background:#ffe08a;}small{color:#666}</style></head>
<body><h1>$title</h1><p><small>$asked</small></p>
<pre class="error">$body</pre>
$source</body></html>
END
}

# excerpt is the source around a line, or nothing where it cannot be read.
sub excerpt ($file, $line) {
    my $path = $file =~ m{\A/} ? $file : "$root/$file";
    return if !-f $path || -s _ > 1 << 20 || index($path, "$engine/") == 0;
    open my $in, '<:raw', $path or return;
    my $html = '';
    while (my $text = readline $in) {
        last if $. > $line + AROUND;
        next if $. < $line - AROUND;
        chomp $text;
        $text = sprintf '%5d  %s', $., escaped($text);
        $text = "<mark>$text</mark>" if $. == $line;
        $html .= "$text\n";
    }
    return '<h2>' . escaped("$file line $line") . "</h2>\n<pre>$html</pre>\n";
}

sub escaped ($text) {
    $text = bytes($text);
    my %entity = ('&' => 'amp', '<' => 'lt', '>' => 'gt', '"' => 'quot', "'" => '#39');
    return $text =~ s/([&<>"'])/&$entity{$1};/gr;
}

sub bytes ($text) {
    utf8::encode($text) if utf8::is_utf8($text);
    return $text;
}

1;
